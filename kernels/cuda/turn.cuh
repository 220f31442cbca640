// Rotation of keys and queries. A turn is a (cos, sin); those of two neighbouring dimension pairs
// make a float4.
#pragma once

#include <cstdint>

#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/rope.h"

namespace everlong::cuda {

// One turn after the other.
__device__ inline float2 Combine(float2 a, float2 b) {
  return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};
}
__device__ inline float4 Combine(float4 a, float4 b) {
  return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x, a.z * b.z - a.w * b.w,
          a.z * b.w + a.w * b.z};
}

// By `distance` positions, of pairs `pair` and pair + 1; pair is even, half_dim is head_dim / 2.
__device__ inline float4 TurnsOf(const RopeTable& rope, int half_dim, int distance, int pair) {
  const auto at = [&](const float2* table, int row) {
    return *reinterpret_cast<const float4*>(table + static_cast<int64_t>(row) * half_dim + pair);
  };
  const float4 turns =
      Combine(at(rope.page, (distance >> 6) & 1023), at(rope.offset, distance & 63));
  return distance < 1 << 16 ? turns : Combine(at(rope.high, distance >> 16), turns);
}

// Two neighbouring pairs, their first elements in `first`, their second in `second`: opened ones of
// a Kv, which become bf16.
template <class Kv>
__device__ inline void TurnOpened(uint32_t& first, uint32_t& second, float4 turns) {
  const float a = Kv::Low(first);
  const float b = Kv::High(first);
  const float c = Kv::Low(second);
  const float d = Kv::High(second);
  first = PackBf16(a * turns.x - c * turns.y, b * turns.z - d * turns.w);
  second = PackBf16(c * turns.x + a * turns.y, d * turns.z + b * turns.w);
}

// The same as bf16.
__device__ inline void Turn(uint32_t& first, uint32_t& second, float4 turns) {
  TurnOpened<Bf16Kv>(first, second, turns);
}

}  // namespace everlong::cuda
