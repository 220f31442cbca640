#include "engine/attention_plan.h"

#include <algorithm>

namespace everlong {
namespace {

Positions PositionsAt(const AttentionSettings& s, int64_t last_position, int64_t trained_length) {
  switch (s.positions) {
    case PositionRule::kTrue:
      return Positions::kTrue;
    case PositionRule::kStreaming:
      return Positions::kStreaming;
    case PositionRule::kClipped:
      return Positions::kClipped;
    case PositionRule::kAuto:
      break;
  }
  return last_position < trained_length ? Positions::kTrue : Positions::kClipped;
}

// A query block's reads, given where its window is anchored.
void SetBounds(const AttentionSettings& s, int64_t anchor, QueryBlock& block) {
  const int64_t window_begin =
      std::max<int64_t>(anchor - s.window, 0) / kBlockTokens * kBlockTokens;
  if (window_begin <= s.num_sinks) return;  // sinks and window cover everything
  block.num_sinks = s.num_sinks;
  block.window_begin = window_begin;
}

}  // namespace

void PlanBuilder::Clear(int32_t first_prompt_slot) {
  blocks.clear();
  selects.clear();
  next_slot = first_prompt_slot;
}

void PlanBuilder::Add(const SequencePlan& plan, int32_t layer_class, int32_t sequence,
                      int32_t first_row, int64_t begin, int64_t end) {
  const AttentionSettings& settings = plan.policy->classes[layer_class];
  for (int64_t position = begin; position < end;) {
    const auto row = static_cast<int32_t>(first_row + (position - begin));
    const int64_t block_end =
        AddOne(plan, settings, {.sequence = sequence, .first_row = row}, position, end);
    position = block_end;
  }
}

// Appends the block that `begin` belongs to; returns where it ends.
int64_t PlanBuilder::AddOne(const SequencePlan& plan, const AttentionSettings& s, QueryBlock block,
                            int64_t begin, int64_t end) {
  const int64_t trained_length = plan.policy->trained_length;
  const int64_t sparse_begin = SparseBegin(s, trained_length);
  const bool sparse = begin >= sparse_begin;
  const bool decode = begin >= plan.decode_begin;
  const SelectorSettings& selector = decode ? s.decode : s.prefill;
  int64_t block_end = std::min(end, sparse_begin);
  int64_t step = 0;
  if (sparse) {
    const int64_t first = begin / kQueryBlockTokens * kQueryBlockTokens;
    const int64_t decode_anchor = std::max(plan.decode_begin, sparse_begin);
    step = begin - decode_anchor;
    block_end = decode ? begin + 1 : std::min({first + kQueryBlockTokens, plan.decode_begin, end});
    SetBounds(s, decode ? begin - step % selector.refresh[0] : first, block);
  }
  block.num_rows = static_cast<int32_t>(block_end - begin);
  if (block.window_begin > 0) {
    block.positions =
        PositionsAt(s, decode ? begin : begin | (kQueryBlockTokens - 1), trained_length);
    block.clip_distance = ClipDistance(s);
    if (selector.name != SelectorName::kWindow) {
      SelectParams params = selector.params;
      params.distance = selector.name == SelectorName::kHip ? s.window : block.clip_distance;
      if (block_end == plan.decode_begin) {
        for (HipStage& stage : params.stages) stage.pool_rows = false;
      }
      block.slot = decode ? plan.slot : next_slot++;
      block.select = static_cast<int32_t>(selects.size());
      block.first = !decode || step == 0;
      while (decode && block.first_stage < selector.num_stages() &&
             step % selector.refresh[block.first_stage] != 0) {
        ++block.first_stage;
      }
      selects.push_back(params);
    }
  }
  blocks.push_back(block);
  return block_end;
}

AttentionPlan PlanBuilder::plan() const {
  return {.num_blocks = static_cast<int32_t>(blocks.size()),
          .num_selects = static_cast<int32_t>(selects.size()),
          .blocks = blocks.data(),
          .selects = selects.data()};
}

StepUse UseOf(const AttentionPolicy& policy, std::span<const PlanBuilder> plans, int64_t position) {
  StepUse use{.attended_ratio = 0.0};
  for (const int32_t layer_class : policy.layer_class) {
    const PlanBuilder& plan = plans[layer_class];
    const QueryBlock& block = plan.blocks.back();
    int64_t selected = 0;
    if (block.select >= 0) {
      const SelectParams& params = plan.selects[block.select];
      const int64_t candidates = block.window_begin - block.num_sinks;
      selected = std::min(candidates, int64_t{params.keep_blocks} * kBlockTokens);
      if (use.num_stages == 0) {
        use.first_stage = block.first_stage;
        use.num_stages = policy.classes[layer_class].decode.num_stages();
      }
    }
    const int64_t read = block.num_sinks + selected + position + 1 - block.window_begin;
    use.attended_ratio += static_cast<double>(read) / static_cast<double>(position + 1);
  }
  use.attended_ratio /= static_cast<double>(policy.layer_class.size());
  return use;
}

}  // namespace everlong
