// Formulas that more than one kernel computes, so that results have the same bits wherever they
// come from.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace everlong::cuda {

// Threads of a CTA that normalises a row; which of them takes what decides how sums are rounded.
inline constexpr int kNormThreads = 256;

// The sum over all kNormThreads, to each of them.
__device__ inline float SumOverThreads(float value) {
  constexpr int kWarps = kNormThreads / 32;
  __shared__ float warp_sums[kWarps];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_sums[threadIdx.x % kWarps];
  for (int step = kWarps / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// What a row is multiplied by, from a thread's sum of the squares of every kNormThreads-th vector.
__device__ inline float NormFactor(float squares, int64_t width, float eps) {
  return 1.0f / sqrtf(SumOverThreads(squares) / static_cast<float>(width) + eps);
}

__device__ inline __nv_bfloat16 Normalized(float x, float factor, float weight) {
  return __float2bfloat16_rn(x * factor * weight);
}

__device__ inline __nv_bfloat16 ActivateGate(__nv_bfloat16 gate, __nv_bfloat16 up) {
  const float x = __bfloat162float(gate);
  const float silu = x / (1.0f + expf(-x));
  return __float2bfloat16_rn(silu * __bfloat162float(up));
}

}  // namespace everlong::cuda
