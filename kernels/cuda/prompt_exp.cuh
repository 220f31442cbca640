// Exponentials of scores, and what lanes of a quad have in common: rows of a product.
#pragma once

namespace everlong::cuda::prompt {

inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kLn2 = 0.69314718f;
// Weights are relative to a score that the largest one passes by so much at most: they may be
// 2^kSlack.
inline constexpr float kSlack = 8.0f;

__device__ inline float Exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Over the lanes that have elements of the same row.
template <class Combine>
__device__ inline float OverQuad(float x, const Combine& combine) {
  x = combine(x, __shfl_xor_sync(~0u, x, 1));
  return combine(x, __shfl_xor_sync(~0u, x, 2));
}

}  // namespace everlong::cuda::prompt
