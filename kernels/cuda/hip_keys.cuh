// Probed keys as right operands of matrix products, eight at a time, and the products. Lane 4 g + t
// holds dimensions 32 j + 8 t .. + 7 of key g and of query rows g and g + 8, and so both elements
// of every pair that rotates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/hip_probing.h"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::hip {

// Vectors have kDim dimensions, padded from head_dim where kPadded.
template <class KvType, int kDimensions, bool kPad>
struct Shape {
  using Kv = KvType;
  static constexpr int kDim = kDimensions;
  static constexpr bool kPadded = kPad;
  static constexpr int kSteps = kDim / 32;
  static constexpr int kRowTiles = RowTiles(kDim);
};

// A token's key in its KV block.
template <class Kv>
struct KeyAddress {
  __device__ KeyAddress(const std::byte* block, int token, int head_dim)
      : elements(block + token * head_dim * Kv::kBytes),
        scale(block + 2 * kBlockTokens * head_dim * Kv::kBytes + 4 * token) {}
  const std::byte* elements;
  const std::byte* scale;  // where Kv has one
};

// A lane's part of a key, as stored.
template <class S>
struct StoredKey {
  using Kv = typename S::Kv;
  Chunk<Kv> chunks[S::kSteps];
  float scale;

  // `base`: what `place` (KeyPlace) counts from.
  __device__ void Load(const std::byte* base, int64_t place, int head_dim) {
    const auto token = static_cast<int>(place % kBlockTokens);
    const KeyAddress<Kv> key(base + (place - token), token, head_dim);
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) {
      const int dim = 32 * j + 8 * (threadIdx.x % 4);
      chunks[j] = LoadChunk<Kv, S::kDim, S::kPadded>(key.elements, dim, head_dim);
    }
    scale = 1.0f;
    if constexpr (Kv::kScaled) scale = __uint_as_float(LoadCached<1>(key.scale).w[0]);
  }
};

// A lane's part of a key as products take it.
template <class S>
struct Key {
  Words<4> chunks[S::kSteps];

  __device__ explicit Key(const StoredKey<S>& stored) {
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) chunks[j] = S::Kv::Widen(stored.chunks[j]);
  }

  // From 0 to `position`.
  __device__ void Rotate(const RopeTable& rope, int half_dim, int position) {
#pragma unroll
    for (int j = 0; j < S::kSteps / 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pair = 32 * j + 8 * (threadIdx.x % 4) + 2 * i;
        if (S::kPadded && pair >= half_dim) continue;
        Turn(chunks[j].w[i], chunks[j + S::kSteps / 2].w[i],
             TurnsOf(rope, half_dim, position, pair));
      }
    }
  }
};

// 32 dimensions of 16 query rows, as Probing::queries has them.
struct Rows {
  Words<4> halves[2];

  // `from`: the first lane's.
  __device__ void Load(const uint4* from) {
    const uint4* own = from + threadIdx.x % 32;
    halves[0] = LoadCached<4>(reinterpret_cast<const std::byte*>(own));
    halves[1] = LoadCached<4>(reinterpret_cast<const std::byte*>(own + 32));
  }
};
inline constexpr int kRowsWords = 64;  // uint4 of such Rows

// The half of a step's product whose operands are words 2 `half` and 2 `half` + 1 of keys.
__device__ inline void AddHalf(const Rows& rows, const Words<4>& keys, int half, float (&sums)[4]) {
  MultiplyAdd(sums, rows.halves[half].w, keys.w[2 * half], keys.w[2 * half + 1]);
}

// Given in lane 4 g + t the best of some rows for keys 2 t and 2 t + 1: in all lanes 4 g + t, the
// best of all rows for key g.
__device__ inline float BestOfRows(float even, float odd) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  const int key = threadIdx.x % 32 / 4;
  // From here on, key 2 t + g % 2.
  float best = key % 2 == 0 ? even : odd;
  best = fmaxf(best, __shfl_xor_sync(kAll, key % 2 == 0 ? odd : even, 4));
  best = fmaxf(best, __shfl_xor_sync(kAll, best, 8));
  best = fmaxf(best, __shfl_xor_sync(kAll, best, 16));
  return __shfl_sync(kAll, best, key % 2 * 4 + key / 2);
}

}  // namespace everlong::cuda::hip
