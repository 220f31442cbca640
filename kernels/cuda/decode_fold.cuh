// What warps do with tiles of 16 keys: score them for the heads of a group and fold their values
// into the results. Scores are a product keys x heads and results a product dimensions x heads, so
// both operands from the cache are first ones, whose rows a lane reads 16 bytes at a time, in an
// order of dimensions that suits them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::decode {

inline constexpr int kHeads = 8;  // of a group that a CTA serves; larger groups have several

// Vectors have kDim dimensions, padded from head_dim where kPadded. Scores have base 2.
template <class KvType, int kDimensions, bool kPad>
struct Shape {
  using Kv = KvType;
  static constexpr int kDim = kDimensions;
  static constexpr bool kPadded = kPad;
  static constexpr int kPartStride = kDim + 8;  // f32, keeps lanes out of each other's banks
};

// The values of a tile. Lane 4 g + t holds dimensions 64 c + 8 g .. + 7 of tokens 2 t and 2 t + 1
// of both blocks; element e in [0, kDim / 8) is dimension 64 (e / 8) + 8 g + e % 8. What is not
// seen is zero: its weights are.
template <class S>
struct Values {
  using Kv = typename S::Kv;
  Chunk<Kv> chunks[kTileBlocks][2][S::kDim / 64];
  float scales[kTileBlocks];  // of token g
};

// Scores or weights of a tile: lane 4 g + t holds heads 2 t (0, 2) and 2 t + 1 (1, 3), for token g
// of the first (0, 1) and second block (2, 3).
using Scores = float[4];

template <class S, class AnyQuery>
__device__ void Multiply(const Words<4> (&keys)[kTileBlocks][S::kDim / 32], const AnyQuery& query,
                         Scores& scores) {
  Scores sums[2] = {};  // two, so that not every product waits for the one before it
#pragma unroll
  for (int j = 0; j < S::kDim / 32; ++j) {
    const Words<4> heads = query.Get(j);
#pragma unroll
    for (int r = 0; r < 4; r += 2) {
      const uint32_t a[4] = {keys[0][j].w[r], keys[1][j].w[r], keys[0][j].w[r + 1],
                             keys[1][j].w[r + 1]};
      MultiplyAdd(sums[r / 2], a, heads.w[r], heads.w[r + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[i] = sums[0][i] + sums[1][i];
}

// Of the values of two tokens, as words of elements e: the pair's in one word.
template <int kChunks>
__device__ uint32_t PairOf(const Words<4> (&tokens)[2][kChunks], int e) {
  return __byte_perm(tokens[0][e / 8].w[e % 8 / 2], tokens[1][e / 8].w[e % 8 / 2],
                     e % 2 == 0 ? 0x5410 : 0x7632);
}

// What a warp has folded. Lane 4 g + t holds elements m (0, 1) and m + kDim / 16 (2, 3) as Values
// numbers them, of heads 2 t (0, 2) and 2 t + 1 (1, 3).
template <class S>
struct Folded {
  float out[S::kDim / 16][4] = {};
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of the lane's own tokens
  // Where values have scales, `out` counts in a unit, the least power of two that no scale so far
  // passes, at least 2^-100. Weights times scales in units of it times kHeadroom are then no larger
  // than f16 has, and rounded as well as in bf16 where weight times scale is 2^-24 of a unit or
  // more.
  float unit = 0.0f;
  float per_unit = 0.0f;
  static constexpr float kHeadroom = 128.0f;
  static_assert(kSlack == 8.0f);

  // Turns scores into weights relative to `max`, which none passes by more than kSlack.
  __device__ void Weigh(Scores& scores) {
    const float tops[2] = {fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
    if (__any_sync(~0u, tops[0] > max[0] + kSlack || tops[1] > max[1] + kSlack)) Raise(tops);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scores[i] = Exp2(scores[i] - max[i]);
      scores[2 + i] = Exp2(scores[2 + i] - max[i]);
      sum[i] += scores[i] + scores[2 + i];
    }
  }

  __device__ void Add(const Values<S>& values, const Scores& weights) {
    using Kv = typename S::Kv;
    uint32_t b[kTileBlocks];
    Words<4> opened[kTileBlocks][2][S::kDim / 64];
    if constexpr (Kv::kScaled) {
      const float most = fmaxf(values.scales[0], values.scales[1]);
      if (__any_sync(~0u, most > unit)) RaiseUnit(most);
    }
#pragma unroll
    for (int i = 0; i < kTileBlocks; ++i) {
      float scale = 1.0f;
      if constexpr (Kv::kScaled) scale = values.scales[i] * per_unit;
      b[i] = Transpose(Kv::Pack(weights[2 * i] * scale, weights[2 * i + 1] * scale));
#pragma unroll
      for (int c = 0; c < S::kDim / 64; ++c) {
        opened[i][0][c] = Kv::Open(values.chunks[i][0][c]);
        opened[i][1][c] = Kv::Open(values.chunks[i][1][c]);
      }
    }
#pragma unroll
    for (int m = 0; m < S::kDim / 16; ++m) {
      const int e = m + S::kDim / 16;
      const uint32_t a[4] = {PairOf(opened[0], m), PairOf(opened[0], e), PairOf(opened[1], m),
                             PairOf(opened[1], e)};
      Kv::MultiplyAdd(out[m], a, b[0], b[1]);
    }
  }

  // Makes `unit` one that no lane's `scale` passes.
  __device__ void RaiseUnit(float scale) {
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      scale = fmaxf(scale, __shfl_xor_sync(~0u, scale, lanes));
    }
    const uint32_t power = (__float_as_uint(scale) + 0x007FFFFFu) & 0x7F800000u;
    const float raised = fmaxf(__uint_as_float(power), 0x1p-100f);
    const float keep = unit / raised;
    unit = raised;
    per_unit = kHeadroom / raised;
#pragma unroll
    for (auto& four : out) {
#pragma unroll
      for (float& x : four) x *= keep;
    }
  }

  // Makes `max` the largest score so far.
  __device__ void Raise(const float (&tops)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = fmaxf(max[i], tops[i]);
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
      }
      const float keep = Exp2(max[i] - top);
      max[i] = top;
      sum[i] *= keep;
#pragma unroll
      for (int m = 0; m < S::kDim / 16; ++m) {
        out[m][i] *= keep;
        out[m][2 + i] *= keep;
      }
    }
  }

  // To [kHeads][kPartStride] and [kHeads].
  __device__ void Store(float* part, float2* sums) const {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    const float scale = S::Kv::kScaled ? unit / kHeadroom : 1.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = 2 * t + i;
      float total = sum[i];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
      if (g == 0) sums[head] = {max[i], total};
#pragma unroll
      for (int e = 0; e < S::kDim / 8; e += 4) {
        const int m = e % (S::kDim / 16);
        const int c = e / (S::kDim / 16) * 2 + i;
        *reinterpret_cast<float4*>(part + head * S::kPartStride + e / 8 * 64 + 8 * g + e % 8) = {
            out[m][c] * scale, out[m + 1][c] * scale, out[m + 2][c] * scale, out[m + 3][c] * scale};
      }
    }
  }
};

}  // namespace everlong::cuda::decode
