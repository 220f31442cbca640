// What a selector leaves for the final lists.
#pragma once

#include <cstdint>

namespace everlong::cuda {

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
