// The blocks that Select must choose, by the definitions in args.h, one query block at a time.
#pragma once

#include <vector>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/host_index.h"
#include "tests/kernels/selection.h"

namespace everlong {

// Queries, stored keys and their index.
struct SelectProblem {
  AttentionShape shape;
  Step step;
  HostCache cache;
  HostIndex index;
  HostSelection selection;  // before
  Values q;                 // [num_tokens][q_heads * head_dim]
  DType activation_type = DType::kF32;
  const float* inv_freq;
  bool quarter_turns = false;  // every distance is meant to turn by multiples of a quarter
  std::vector<SelectParams> selects;
  int32_t layer = 0;

  // What Select leaves in the lists.
  HostSelection Run(Device& device) const;
  struct Outcome {
    HostSelection selection;
    double least_gap;  // between two scores that a choice compared, where they differ
  };
  Outcome Expected() const;

  // Between which values the scores of a scan's candidates lie, for one block and KV head, where
  // query rows are rounded as kScan may.
  struct Range {
    double least;
    double most;
  };
  std::vector<Range> ScanScores(const QueryBlock& block, int32_t kv_head) const;

  // What a backend may be off in a score, by f32 and by rounding to activations.
  double ScoreError() const;
};

}  // namespace everlong
