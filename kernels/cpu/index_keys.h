#pragma once

#include "kernels/args.h"
#include "kernels/cpu/aligned_floats.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace everlong::cpu {

// Encodes the keys of the pages that a step completes, as KeyIndex says. Keeps room for a head's
// keys of a page for each thread.
class IndexKeys {
 public:
  void Run(const IndexKeysArgs& args, const Step& step, ThreadPool& pool);

 private:
  AlignedFloats keys_;
};

}  // namespace everlong::cpu
