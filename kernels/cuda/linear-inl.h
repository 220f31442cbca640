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

// Where results go, and what becomes of the sum of row r and output n first.
struct Output {
  const float* scales;
  const float* bias;
  void* out;
  int64_t stride;
  MatMulOut mode;

  static Output Of(const MatMulArgs& args) {
    return {RowScales(args.w), args.bias, args.out, args.out_stride, args.mode};
  }

  // What a sum is scaled by, and what is added to it.
  struct Terms {
    float scale;
    float bias;
    float before;

    __device__ float Finish(float sum) const { return sum * scale + bias + before; }
  };

  __device__ Terms TermsOf(int64_t r, int64_t n) const {
    return {.scale = scales == nullptr ? 1.0f : scales[n],
            .bias = bias == nullptr ? 0.0f : bias[n],
            .before = mode == MatMulOut::kAddF32 ? static_cast<float*>(out)[r * stride + n] : 0.0f};
  }

  __device__ void Store(int64_t r, int64_t n, float value) const {
    const int64_t i = r * stride + n;
    if (mode == MatMulOut::kActivations) {
      static_cast<BF16*>(out)[i] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(out)[i] = value;
    }
  }
  __device__ void StoreSum(int64_t r, int64_t n, float sum) const {
    Store(r, n, TermsOf(r, n).Finish(sum));
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
