// Formulas that more than one kernel computes, so that results have the same bits wherever they
// come from.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {

// Threads of a CTA that normalises a row; which of them takes what decides how sums are rounded.
inline constexpr int kNormThreads = 256;

// What a row is multiplied by, from a thread's sum of the squares of every kNormThreads-th vector.
__device__ inline float NormFactor(float squares, int64_t width, float eps) {
  return 1.0f / sqrtf(ReduceBlock<kNormThreads>(squares, Sum()) / static_cast<float>(width) + eps);
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
