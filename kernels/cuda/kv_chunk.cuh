// Eight neighbouring elements of a stored key or value, as they are loaded and as bf16 or f16.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/mma.cuh"

namespace everlong::cuda {

template <int kWords>
struct alignas(4 * kWords) Words {
  uint32_t w[kWords] = {};
};

// Loads that do not disturb the L1 cache, of what is read once, `kOffset` bytes from an address.
template <int kWords, int kOffset = 0>
__device__ inline Words<kWords> LoadOnce(const std::byte* from) {
  Words<kWords> to;
  if constexpr (kWords == 4) {
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(to.w[0]), "=r"(to.w[1]), "=r"(to.w[2]), "=r"(to.w[3])
                 : "l"(from), "n"(kOffset));
  } else if constexpr (kWords == 2) {
    asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2 + %3];"
                 : "=r"(to.w[0]), "=r"(to.w[1])
                 : "l"(from), "n"(kOffset));
  } else {
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1 + %2];"
                 : "=r"(to.w[0])
                 : "l"(from), "n"(kOffset));
  }
  return to;
}

// Loads of what is soon read again.
template <int kWords>
__device__ inline Words<kWords> LoadCached(const std::byte* from) {
  if constexpr (kWords == 4) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
  } else if constexpr (kWords == 2) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
    return {{words.x, words.y}};
  } else {
    return {{__ldg(reinterpret_cast<const uint32_t*>(from))}};
  }
}

// What a cache holds. Opened elements are the same values, two to a word, as they are cheapest to
// have.
struct Bf16Kv {
  static constexpr int kBytes = 2;  // of an element
  static constexpr bool kScaled = false;
  __device__ static Words<4> Widen(const Words<4>& chunk) { return chunk; }

  __device__ static Words<4> Open(const Words<4>& chunk) { return chunk; }
  __device__ static float Low(uint32_t opened) { return LowBf16(opened); }
  __device__ static float High(uint32_t opened) { return HighBf16(opened); }
  // c += a b, of opened elements and what is packed like them.
  __device__ static void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    cuda::MultiplyAdd(c, a, b0, b1);
  }
  __device__ static uint32_t Pack(float low, float high) { return PackBf16(low, high); }
};

struct F8Kv {
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;  // by token
  // E4M3's bits, moved to where bf16 has exponent and mantissa, make a number 2^120 too small; that
  // holds for subnormals too.
  __device__ static Words<4> Widen(const Words<2>& chunk) {
    const __nv_bfloat162 factor = __float2bfloat162_rn(0x1p120f);
    Words<4> wide;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bytes = __byte_perm(chunk.w[i / 2], 0, i % 2 == 0 ? 0x1404 : 0x3424);
      const uint32_t bits = (bytes & 0x80008000u) | (bytes & 0x7F007F00u) >> 4;
      const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits), factor);
      wide.w[i] = reinterpret_cast<const uint32_t&>(product);
    }
    return wide;
  }

  // As f16, which has all values of E4M3.
  __device__ static Words<4> Open(const Words<2>& chunk) {
    Words<4> opened;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
      const auto pair = static_cast<uint16_t>(chunk.w[i / 2] >> i % 2 * 16);
      asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(opened.w[i]) : "h"(pair));
#else
      const __half2 factor = __float2half2_rn(256.0f);
      const uint32_t bytes = __byte_perm(chunk.w[i / 2], 0, i % 2 == 0 ? 0x1404 : 0x3424);
      const uint32_t bits = (bytes & 0x80008000u) | (bytes & 0x7F007F00u) >> 1;
      const __half2 product = __hmul2(reinterpret_cast<const __half2&>(bits), factor);
      opened.w[i] = reinterpret_cast<const uint32_t&>(product);
#endif
    }
    return opened;
  }
  __device__ static float Low(uint32_t opened) {
    return LowHalf(opened);
  }
  __device__ static float High(uint32_t opened) {
    return HighHalf(opened);
  }
  __device__ static void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    MultiplyAddHalves(c, a, b0, b1);
  }
  __device__ static uint32_t Pack(float low, float high) {
    return PackHalves(low, high);
  }
};

// Opened elements as bf16.
template <class Kv>
__device__ inline Words<4> Bf16Of(Words<4> opened) {
  if constexpr (Kv::kScaled) {
#pragma unroll
    for (uint32_t& pair : opened.w) pair = PackBf16(Kv::Low(pair), Kv::High(pair));
  }
  return opened;
}

template <class Kv>
using Chunk = Words<2 * Kv::kBytes>;

// Where kernels for kDim dimensions work on fewer, each half of a vector is padded with zeros of
// its own, so that the two elements of a pair stay kDim / 2 apart. Of such a vector's dimension:
template <int kDim>
struct PaddedDim {
  __device__ PaddedDim(int padded, int head_dim)
      : exists(padded % (kDim / 2) < head_dim / 2),
        stored(padded < kDim / 2 ? padded : padded - kDim / 2 + head_dim / 2) {}
  bool exists;
  int stored;  // where the vector has it
};

// Padded dimensions [dim, dim + 8) of a vector, of which `load` gives four from a stored one on.
// head_dim is a multiple of 8, thus a half one of 4.
template <class Kv, int kDim, class Load>
__device__ inline Chunk<Kv> PaddedChunk(int dim, int head_dim, const Load& load) {
  Chunk<Kv> chunk;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const PaddedDim<kDim> at(dim + 4 * half, head_dim);
    if (!at.exists) continue;
    const Words<Kv::kBytes> words = load(at.stored);
#pragma unroll
    for (int i = 0; i < Kv::kBytes; ++i) chunk.w[half * Kv::kBytes + i] = words.w[i];
  }
  return chunk;
}

// Padded dimensions [dim, dim + 8) of a stored vector.
template <class Kv, int kDim, bool kPadded>
__device__ inline Chunk<Kv> LoadChunk(const std::byte* vector, int dim, int head_dim) {
  if constexpr (!kPadded) {
    return LoadOnce<2 * Kv::kBytes>(vector + dim * Kv::kBytes);
  } else {
    return PaddedChunk<Kv, kDim>(dim, head_dim, [&](int stored) {
      return LoadOnce<Kv::kBytes>(vector + stored * Kv::kBytes);
    });
  }
}

}  // namespace everlong::cuda
