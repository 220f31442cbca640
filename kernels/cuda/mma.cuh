// Products of small matrices on tensor cores (PTX ISA, mma.m16n8k16). A matrix is spread over a
// warp: lane 4 g + t holds, two neighbours to a register,
//   of a [16][16]: rows g and g + 8, columns 2 t, 2 t + 1 (words 0, 1) and those 8 on (words 2, 3)
//   of b [16][8]:  column g, rows 2 t, 2 t + 1 (word 0) and those 8 on (word 1)
//   of c [16][8]:  rows g (elements 0, 1) and g + 8 (2, 3), columns 2 t, 2 t + 1
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace everlong::cuda {

// c += a b, of bf16.
__device__ inline void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, of f16.
__device__ inline void MultiplyAddHalves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of an 8 x 8 matrix of 16-bit elements, whose lane 4 g + t holds row g, columns 2 t and 2 t + 1.
__device__ inline uint32_t Transpose(uint32_t matrix) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

// Two bf16 in a word, the first in its lower half.
__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float LowBf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float HighBf16(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}

// The same of f16.
__device__ inline uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline float LowHalf(uint32_t pair) {
  return __low2float(reinterpret_cast<const __half2&>(pair));
}
__device__ inline float HighHalf(uint32_t pair) {
  return __high2float(reinterpret_cast<const __half2&>(pair));
}

}  // namespace everlong::cuda
