// Stored keys as f32, four elements at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"

namespace everlong::cuda {

// A key of a cache whose base is that of the layer; its elements are to be multiplied by its scale.
template <class Kv>
struct StoredKey {
  const std::byte* elements;
  float scale;

  __device__ static StoredKey At(const KvCache& cache, int64_t page, int head, int token) {
    const int64_t number = head * kPageBlocks + token / kBlockTokens;
    const std::byte* block = static_cast<const std::byte*>(cache.base) + page * cache.PageBytes() +
                             number * cache.BlockBytes();
    const int in_block = token % kBlockTokens;
    StoredKey key = {block + in_block * cache.head_dim * Kv::kBytes, 1.0f};
    if constexpr (Kv::kScaled) {
      const std::byte* scales = block + cache.BlockElements() * Kv::kBytes;
      key.scale = __ldg(reinterpret_cast<const float*>(scales) + in_block);
    }
    return key;
  }

  // Elements [dim, dim + 4), not multiplied yet.
  __device__ float4 Four(int dim) const {
    uint2 four;
    if constexpr (Kv::kScaled) {
      const auto word = __ldg(reinterpret_cast<const uint32_t*>(elements + dim));
      const Words<4> wide = Kv::Widen({{word, 0}});
      four = {wide.w[0], wide.w[1]};
    } else {
      four = __ldg(reinterpret_cast<const uint2*>(elements + dim * Kv::kBytes));
    }
    return {LowBf16(four.x), HighBf16(four.x), LowBf16(four.y), HighBf16(four.y)};
  }
};

}  // namespace everlong::cuda
