// The step that BeginStep announced, copied. Spans point into it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"

namespace everlong::cpu {

struct StepSequence {
  int32_t first_row = 0;  // of the step's tokens
  int32_t num_tokens = 0;
  int64_t context = 0;  // tokens stored before this step
  std::span<const int32_t> pages;

  int64_t position(int64_t row) const { return context + row - first_row; }
};

struct StepPlan {
  std::span<const QueryBlock> blocks;
  std::span<const SelectParams> selects;
};

class Step {
 public:
  void Assign(const StepLayout& layout);

  std::span<const int32_t> tokens() const { return tokens_; }
  std::span<const int32_t> output_rows() const { return output_rows_; }
  std::span<const StepSequence> sequences() const { return sequences_; }
  const StepPlan& plan(int32_t i) const { return plans_[i]; }
  int64_t max_pages() const { return max_pages_; }  // of one sequence

 private:
  void AssignPlans(const StepLayout& layout);

  std::vector<int32_t> tokens_;
  std::vector<int32_t> output_rows_;
  std::vector<int32_t> pages_;
  std::vector<StepSequence> sequences_;
  std::vector<QueryBlock> blocks_;
  std::vector<SelectParams> selects_;
  std::vector<StepPlan> plans_;
  int64_t max_pages_ = 0;
};

}  // namespace everlong::cpu
