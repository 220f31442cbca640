// Exponentials of scores, which have base 2.
#pragma once

namespace everlong::cuda {

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

}  // namespace everlong::cuda
