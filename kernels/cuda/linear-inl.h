// What kernels of matrix products share: elements of weights, and where sums go.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/linear.h"

namespace everlong::cuda {

using BF16 = __nv_bfloat16;
using F8 = __nv_fp8_e4m3;

// The sum of row r and output n is to be scaled, and the bias added.
struct Output {
  const float* scales;
  const float* bias;
  void* out;
  int64_t stride;
  MatMulOut mode;

  static Output Of(const MatMulArgs& args) {
    return {RowScales(args.w), args.bias, args.out, args.out_stride, args.mode};
  }

  __device__ void Store(int64_t r, int64_t n, float sum) const {
    if (scales != nullptr) sum *= scales[n];
    if (bias != nullptr) sum += bias[n];
    const int64_t i = r * stride + n;
    if (mode == MatMulOut::kActivations) {
      static_cast<BF16*>(out)[i] = __float2bfloat16_rn(sum);
    } else {
      auto* sums = static_cast<float*>(out);
      sums[i] = mode == MatMulOut::kAddF32 ? sums[i] + sum : sum;
    }
  }
};

// Two elements of E4M3, in bytes 1 and 3 of `bytes`, as bf16: fields move to their places, and the
// product makes up for the difference of the exponents' biases, 127 - 7, also of subnormals.
__device__ inline uint32_t ExpandF8(uint32_t bytes) {
  const uint32_t moved = (bytes & 0x80008000u) | (bytes >> 4 & 0x07F007F0u);
  const __nv_bfloat162 factor = __float2bfloat162_rn(0x1p120f);
  const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(moved), factor);
  return reinterpret_cast<const uint32_t&>(value);
}

// Elements 2i and 2i + 1 of the four in `bytes`.
__device__ inline uint32_t ExpandF8(uint32_t bytes, int i) {
  return ExpandF8(__byte_perm(bytes, 0, i == 0 ? 0x1404 : 0x3424));
}

}  // namespace everlong::cuda
