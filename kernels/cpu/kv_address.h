#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace everlong::cpu {

// Where a page holds one head's key of one slot in [0, kPageTokens); its value is
// kBlockTokens * head_dim elements further on. The blocks of a head are back to back.
inline std::byte* KeyAddress(const KvCache& cache, int64_t layer, int64_t page, int64_t head,
                             int64_t slot) {
  const int64_t block = head * kPageBlocks + slot / kBlockTokens;
  const int64_t element = block * cache.BlockElements() + slot % kBlockTokens * cache.head_dim;
  return static_cast<std::byte*>(cache.base) + layer * cache.layer_stride_bytes +
         page * cache.PageBytes() + element * ByteSize(cache.type);
}

}  // namespace everlong::cpu
