// Keys and query rows as lanes hold them for matrix products, and those products. In all of them
// the 32 lanes are groups of four; group n holds key n of a tile of eight (HeadShape).
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/hip_probing.h"

namespace everlong::cuda::hip {

// The (cos, sin) of two neighbouring dimensions.
struct Turns {
  float4 turns;

  __device__ void Apply(float2& low, float2& high) const {
    const float2 a = low;
    const float2 b = high;
    low = {a.x * turns.x - b.x * turns.y, a.y * turns.z - b.y * turns.w};
    high = {b.x * turns.x + a.x * turns.y, b.y * turns.z + a.y * turns.w};
  }

  __device__ Turns Then(const Turns& more) const {
    const float4 a = turns;
    const float4 b = more.turns;
    return {{a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x, a.z * b.z - a.w * b.w,
             a.z * b.w + a.w * b.z}};
  }
};

// At a position >= 0, of dimensions `dim`, even, and `dim` + 1.
__device__ inline Turns TurnsAt(const RopeTable& rope, int half, int64_t position, int dim) {
  const auto read = [&](const float2* table, int64_t at) {
    return Turns{__ldg(reinterpret_cast<const float4*>(table + at * half + dim))};
  };
  const Turns near = read(rope.page, position / 64 % 1024).Then(read(rope.offset, position % 64));
  return position < 65536 ? near : read(rope.high, position / 65536).Then(near);
}

// Four E4M3 numbers as bf16: their bits are those of a bf16 2^120 times smaller.
__device__ inline uint2 ExpandF8(uint32_t four) {
  const auto expand = [](uint32_t upper_bytes) {
    uint32_t bits = (upper_bytes & 0x7F007F00u) >> 4 | (upper_bytes & 0x80008000u);
    const uint32_t factors = 0x7B807B80u;
    const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits),
                                           *reinterpret_cast<const __nv_bfloat162*>(&factors));
    return *reinterpret_cast<const uint32_t*>(&product);
  };
  return {expand(__byte_perm(four, 0, 0x1404)), expand(__byte_perm(four, 0, 0x3424))};
}

// A lane's part of a key, as stored.
template <int kDim, DType kType>
struct StoredKey {
  static constexpr HeadShape kShape = kHeadShape<kDim>;
  static constexpr int kBytes = kType == DType::kBF16 ? 2 : 1;
  using Four = std::conditional_t<kType == DType::kBF16, uint2, uint32_t>;
  using Eight = std::conditional_t<kType == DType::kBF16, uint4, uint2>;

  Eight words[kShape.steps];
  float scale;

  // `base`: what `place` (KeyPlace) counts from; `lane`: in its group of four.
  __device__ void Load(const std::byte* base, int64_t place, int head_dim, int lane) {
    const auto token = static_cast<int>(place % kBlockTokens);
    const std::byte* block = base + (place - token);
    const std::byte* row = block + token * head_dim * kBytes;
#pragma unroll
    for (int step = 0; step < kShape.steps; ++step) {
      if constexpr (kShape.aligned) {
        const int at = step / 2 * 4 + lane + step % 2 * (kDim / 16);
        words[step] = __ldg(reinterpret_cast<const Eight*>(row) + at);
      } else {
        words[step] = Eight{};
        const int at = step * 4 + lane;
        if (at * 8 < head_dim) {
          const auto* fours = reinterpret_cast<const Four*>(row);
          words[step] = Join(__ldg(fours + at), __ldg(fours + head_dim / 8 + at));
        }
      }
    }
    scale = 1.0f;
    if constexpr (kType == DType::kF8) {
      scale = __ldg(reinterpret_cast<const float*>(block + 2 * kBlockTokens * head_dim) + token);
    }
  }

  // As bf16.
  __device__ uint4 Elements(int step) const {
    if constexpr (kType == DType::kBF16) {
      return words[step];
    } else {
      const uint2 low = ExpandF8(words[step].x);
      const uint2 high = ExpandF8(words[step].y);
      return {low.x, low.y, high.x, high.y};
    }
  }

 private:
  static __device__ uint4 Join(uint2 low, uint2 high) {
    return {low.x, low.y, high.x, high.y};
  }
  static __device__ uint2 Join(uint32_t low, uint32_t high) {
    return {low, high};
  }
};

// Of one step and two of its words, those that rotate together.
__device__ inline void TurnWords(const Turns& turns, uint32_t& low, uint32_t& high) {
  float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&low));
  float2 b = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&high));
  turns.Apply(a, b);
  const __nv_bfloat162 turned_low = __floats2bfloat162_rn(a.x, a.y);
  const __nv_bfloat162 turned_high = __floats2bfloat162_rn(b.x, b.y);
  low = *reinterpret_cast<const uint32_t*>(&turned_low);
  high = *reinterpret_cast<const uint32_t*>(&turned_high);
}

// A lane's part of a key as matrix products take it.
template <int kDim>
struct Key {
  static constexpr HeadShape kShape = kHeadShape<kDim>;
  uint4 elements[kShape.steps];

  template <DType kType>
  __device__ explicit Key(const StoredKey<kDim, kType>& stored) {
#pragma unroll
    for (int step = 0; step < kShape.steps; ++step) elements[step] = stored.Elements(step);
  }

  // To `position` from 0.
  __device__ void Rotate(const RopeTable& rope, int half, int64_t position, int lane) {
    if constexpr (kShape.aligned) {
#pragma unroll
      for (int step = 0; step < kShape.steps; step += 2) {
        const int dim = 8 * (step * 2 + lane);
        uint4& low = elements[step];
        uint4& high = elements[step + 1];
        TurnWords(TurnsAt(rope, half, position, dim), low.x, high.x);
        TurnWords(TurnsAt(rope, half, position, dim + 2), low.y, high.y);
        TurnWords(TurnsAt(rope, half, position, dim + 4), low.z, high.z);
        TurnWords(TurnsAt(rope, half, position, dim + 6), low.w, high.w);
      }
    } else {
#pragma unroll
      for (int step = 0; step < kShape.steps; ++step) {
        const int dim = 4 * (step * 4 + lane);
        if (dim >= half) continue;
        uint4& x = elements[step];
        TurnWords(TurnsAt(rope, half, position, dim), x.x, x.z);
        TurnWords(TurnsAt(rope, half, position, dim + 2), x.y, x.w);
      }
    }
  }
};

// 16 query rows by one step, as Probing::queries holds them.
struct QueryStep {
  uint4 halves[2];
};

// sums[0], [1]: keys 2 i and 2 i + 1 for row n, [2], [3] for row n + 8, in lane 4 n + i.
__device__ inline void AddProducts(const uint4& rows, uint32_t low, uint32_t high,
                                   float (&sums)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "r"(low), "r"(high));
}

// Products with the same sums wait for each other, so those with others come between.
template <int kTiles>
__device__ inline void AddProducts(const QueryStep (&rows)[kTiles], const uint4& key,
                                   float (&sums)[kTiles][4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    AddProducts(rows[tile].halves[0], key.x, key.y, sums[tile]);
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    AddProducts(rows[tile].halves[1], key.z, key.w, sums[tile]);
  }
}

// Given in lane 4 n + i the best of some rows for keys 2 i and 2 i + 1: in all lanes of group n,
// the best of all rows for key n.
__device__ inline float BestOfRows(float even, float odd, int lane) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
#pragma unroll
  for (int step = 4; step < 32; step *= 2) {
    even = fmaxf(even, __shfl_xor_sync(kAll, even, step));
    odd = fmaxf(odd, __shfl_xor_sync(kAll, odd, step));
  }
  even = __shfl_sync(kAll, even, lane / 8);
  odd = __shfl_sync(kAll, odd, lane / 8);
  return lane / 4 % 2 == 0 ? even : odd;
}

}  // namespace everlong::cuda::hip
