// Eight neighbouring elements of a stored key or value, as they are loaded and as bf16.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>
#include <utility>

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

// Loads chunks that lie kStride bytes apart.
template <class Kv, int kStride, int kCount>
__device__ inline void LoadChunks(const std::byte* from, Words<2 * Kv::kBytes> (&to)[kCount]) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    ((to[i] = LoadOnce<2 * Kv::kBytes, i * kStride>(from)), ...);
  }
  (std::make_integer_sequence<int, kCount>());
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

// What a cache holds.
struct Bf16Kv {
  static constexpr int kBytes = 2;  // of an element
  static constexpr bool kScaled = false;
  __device__ static Words<4> Widen(const Words<4>& chunk) { return chunk; }
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
};

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

// Padded dimensions [dim, dim + 8) of a stored vector. head_dim is a multiple of 8, thus a half one
// of 4.
template <class Kv, int kDim, bool kPadded>
__device__ inline Chunk<Kv> LoadChunk(const std::byte* vector, int dim, int head_dim) {
  if constexpr (!kPadded) {
    return LoadOnce<2 * Kv::kBytes>(vector + dim * Kv::kBytes);
  } else {
    Chunk<Kv> chunk;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const PaddedDim<kDim> at(dim + 4 * half, head_dim);
      if (!at.exists) continue;
      const auto words = LoadOnce<Kv::kBytes>(vector + at.stored * Kv::kBytes);
#pragma unroll
      for (int i = 0; i < Kv::kBytes; ++i) chunk.w[half * Kv::kBytes + i] = words.w[i];
    }
    return chunk;
  }
}

}  // namespace everlong::cuda
