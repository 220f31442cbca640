#include "kernels/cpu/select.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>

#include "kernels/cpu/probing.h"

namespace everlong::cpu {

void Select::Run(const SelectArgs& args, const Step& step, ThreadPool& pool) {
  workspaces_.resize(pool.num_threads());
  ShareRoom(workspaces_);
  PlanChoices(args, step);
  PrepareChunkTurns(args);
  pool.Run(static_cast<int64_t>(probed_.size()), [&](int64_t i, int thread) {
    ChooseByProbing(args, probed_[i], chunk_turns_, workspaces_[thread]);
  });
  scan_.Run(args, workspaces_, pool);
}

// Blocks whose lists stay are left out; those that take all candidates are done at once.
void Select::PlanChoices(const SelectArgs& args, const Step& step) {
  probed_.clear();
  scan_.Clear();
  const StepPlan& plan = step.plan(args.plan);
  for (const QueryBlock& block : plan.blocks) {
    if (block.slot < 0) continue;
    const SelectParams& params = plan.selects[block.select];
    const bool probes = params.selector == Selector::kHip;
    if (block.first_stage >= (probes ? params.num_stages : 1)) continue;
    const int64_t heads = args.cache.kv_heads;
    for (int64_t head = 0; head < (params.all_heads ? 1 : heads); ++head) {
      const Choice choice = {.block = &block,
                             .params = &params,
                             .sequence = &step.sequences()[block.sequence],
                             .first_head = head,
                             .end_head = params.all_heads ? heads : head + 1};
      if (choice.num_candidates() <= params.keep_blocks) {
        std::vector<int32_t>& all = workspaces_[0].kept;
        all.resize(choice.num_candidates());
        std::iota(all.begin(), all.end(), static_cast<int32_t>(choice.first_block()));
        StoreList(args, choice, kFinalList, all);
      } else if (probes) {
        probed_.push_back(choice);
      } else {
        scan_.Add(choice);
      }
    }
  }
}

// Chunks of a context are few beside its keys, so their turns are kept.
void Select::PrepareChunkTurns(const SelectArgs& args) {
  int64_t most_chunks = 0;
  for (const Choice& choice : probed_) {
    const SelectParams& params = *choice.params;
    if (!args.rotate || params.probes != ProbePositions::kChunk) continue;
    for (int32_t s = 0; s < params.num_stages; ++s) {
      const int64_t blocks = s == 0 ? choice.num_candidates()
                                    : int64_t{params.stages[s - 1].keep_chunks} *
                                          params.stages[s - 1].chunk_tokens / kBlockTokens;
      const int64_t length = params.stages[s].chunk_tokens / kBlockTokens;
      most_chunks = std::max(most_chunks, (blocks + length - 1) / length);
    }
  }
  const int64_t half = args.cache.head_dim / 2;
  const std::span<const float> inv_freq(args.rope.inv_freq, most_chunks == 0 ? 0 : half);
  if (most_chunks > 0 && !std::equal(inv_freq.begin(), inv_freq.end(), chunk_inv_freq_.begin(),
                                     chunk_inv_freq_.end())) {
    chunk_turns_.clear();
    chunk_inv_freq_.assign(inv_freq.begin(), inv_freq.end());
  }
  while (static_cast<int64_t>(chunk_turns_.size()) < most_chunks) {
    const auto number = static_cast<int64_t>(chunk_turns_.size());
    chunk_turns_.emplace_back().Set(args.rope, args.cache.head_dim, number);
  }
}

}  // namespace everlong::cpu
