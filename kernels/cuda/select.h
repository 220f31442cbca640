// What the selectors share: whom they choose for, and what they leave for the final lists.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/ceil_div.h"

namespace everlong::cuda {

// A query block's candidates are the KV blocks [FirstCandidate, EndCandidate).
__host__ __device__ inline int32_t FirstCandidate(const QueryBlock& block) {
  return block.num_sinks / kBlockTokens;
}
__host__ __device__ inline int32_t EndCandidate(const QueryBlock& block) {
  return static_cast<int32_t>(block.window_begin / kBlockTokens);
}

// Whether a query block is `selector`'s and has more candidates than are kept.
__host__ __device__ inline bool HasToChoose(Selector selector, const QueryBlock& block,
                                            const SelectParams* selects) {
  if (block.slot < 0 || block.select < 0) return false;
  const SelectParams& params = selects[block.select];
  return params.selector == selector &&
         EndCandidate(block) - FirstCandidate(block) > params.keep_blocks;
}

// What was chosen for the query blocks of decoded tokens or of prompts, before it becomes their
// slots' final lists. List (block - first such block of the plan) * kv_heads + KV head holds
// ascending blocks. Device memory, in Scratch::kSelectCandidates.
struct ChosenBlocks {
  const int32_t* blocks = nullptr;  // [lists][stride]
  const int32_t* counts = nullptr;  // [lists]; -1: the final list is not the selector's to change
  int64_t stride = 0;
  // Blocks are counted from the first candidate, and with all_heads the first KV head's list is
  // that of all.
  bool from_candidates = false;
};

}  // namespace everlong::cuda
