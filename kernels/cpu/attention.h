#pragma once

#include <cstdint>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/aligned_floats.h"
#include "kernels/cpu/attention_segment.h"
#include "kernels/cpu/rope_table.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace everlong::cpu {

// Divides the attention of a step among threads. Keeps its memory between calls: for each thread
// some 500 vectors as wide as a head, and where the segments of a long context are computed apart,
// their results, which take 1 / 512 of a query's width for every key it reads.
class Attention {
 public:
  void Run(const AttentionArgs& args, const Step& step, ThreadPool& pool);

 private:
  // All segments of some rows, or one.
  struct Task {
    int64_t rows;       // in rows_
    int64_t segment;    // -1: all
    int64_t state = 0;  // in states_, where the segment's goes
  };

  void PrepareRope(const AttentionArgs& args, const Step& step);
  void PlanRows(const AttentionArgs& args, const Step& step, int num_threads);
  void AppendRows(const AttentionArgs& args, const Step& step, const QueryBlock& block,
                  int64_t most_tokens);
  void PlanTasks(int num_threads);

  RopeTable rope_;
  std::vector<QueryRows> rows_;
  std::vector<Task> tasks_;
  std::vector<Task> merges_;  // of rows whose segments are computed apart
  AlignedFloats states_;
  AlignedFloats scratch_;
};

}  // namespace everlong::cpu
