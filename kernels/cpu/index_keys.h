#pragma once

#include "kernels/args.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace everlong::cpu {

// Encodes the keys of the pages that the step completes, as KeyIndex says.
void IndexKeys(const IndexKeysArgs& args, const Step& step, ThreadPool& pool);

}  // namespace everlong::cpu
