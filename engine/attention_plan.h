// The pure functions that turn a sequence's positions into the query blocks of a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/attention_policy.h"
#include "kernels/args.h"

namespace everlong {

// Of one sequence: what its query blocks depend on besides their positions.
struct SequencePlan {
  const AttentionPolicy* policy = nullptr;
  int64_t decode_begin = 0;  // first position decoded by itself: the prompt's last token
  int32_t slot = 0;          // Selection slot of its decode steps
};

// What a step's plan for one layer class is made of; the vectors keep their capacity.
struct PlanBuilder {
  std::vector<QueryBlock> blocks;
  std::vector<SelectParams> selects;
  int32_t next_slot = 0;  // of prompt blocks, whose selections last for the step

  void Clear(int32_t first_prompt_slot);
  // Appends the query blocks of positions [begin, end) of sequence number `sequence`, the first of
  // them row `first_row` of the step. What a position gets does not depend on begin and end.
  void Add(const SequencePlan& plan, int32_t layer_class, int32_t sequence, int32_t first_row,
           int64_t begin, int64_t end);
  AttentionPlan plan() const;

 private:
  int64_t AddOne(const SequencePlan& plan, const AttentionSettings& settings, QueryBlock block,
                 int64_t begin, int64_t end);
};

// What one decode step reads and refreshes, averaged over layers.
struct StepUse {
  double attended_ratio = 1.0;  // tokens read over tokens there
  int32_t first_stage = 0;      // stages [first_stage, num_stages) run, in the first sparse layer
  int32_t num_stages = 0;
};

// Of the decoded token at `position`, whose query blocks are the last ones of `plans`.
StepUse UseOf(const AttentionPolicy& policy, std::span<const PlanBuilder> plans, int64_t position);

}  // namespace everlong
