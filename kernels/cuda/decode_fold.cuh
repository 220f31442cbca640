// What warps do with tiles of 16 keys: read them, score them for the heads of a group and fold
// their values into the results. Scores are a product keys x heads and results a product dimensions
// x heads, so both operands from the cache are first ones, whose rows a lane reads 16 bytes at a
// time straight into its registers, in an order of dimensions that suits them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::decode {

inline constexpr int kMaxSplits = 128;
inline constexpr int kHeads = 8;  // of a group that a CTA serves; larger groups have several

// Vectors have kDim dimensions, padded from head_dim where kPadded. Scores have base 2.
template <class KvType, int kDimensions, bool kPad>
struct Shape {
  using Kv = KvType;
  static constexpr int kDim = kDimensions;
  static constexpr bool kPadded = kPad;
  // Results, keys and values take registers, of which these warps need all on an SM.
  static constexpr int kWarps = kPad ? 4 : kDimensions == 64 ? 8 : 6;  // of a CTA
  static constexpr int kCtas = kPad ? 1 : 2;                           // on an SM
  static constexpr int kThreads = 32 * kWarps;
  // Shared memory: strides in elements that keep lanes out of each other's banks.
  static constexpr int kQueryStride = kDim + 32;  // bf16
  static constexpr int kTurnStride = kDim + 16;   // f32
  static constexpr int kPartStride = kDim + 8;    // f32
  static constexpr int kQueryElements = kHeads * kQueryStride;
  static constexpr int kTurnBytes = kPageTokens * kTurnStride * 4;
  static constexpr int kPartBytes = kWarps * kHeads * kPartStride * 4;
  static constexpr int kSharedBytes =
      (1 + kWarps) * kQueryElements * 2 + std::max(kTurnBytes, kPartBytes);
};

// The keys of a tile. Lane 4 g + t holds dimensions 32 j + 8 t .. + 7 of token g of both blocks.
template <class S>
struct Keys {
  using Kv = typename S::Kv;
  Chunk<Kv> chunks[kTileBlocks][S::kDim / 32];
  float scales[kTileBlocks];

  __device__ void Load(const Tile& tile, int head_dim) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    if (!S::kPadded && tile.full()) return LoadAll(tile, g, t);
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const bool exists = tile.blocks[b].tokens > 0;
      const std::byte* key = tile.blocks[b].address + g * head_dim * Kv::kBytes;
#pragma unroll
      for (int j = 0; j < S::kDim / 32; ++j) {
        chunks[b][j] = {};
        if (!exists) continue;
        chunks[b][j] = LoadChunk<Kv, S::kDim, S::kPadded>(key, 32 * j + 8 * t, head_dim);
      }
      if constexpr (Kv::kScaled) {
        const std::byte* all = tile.blocks[b].address + 2 * kBlockTokens * head_dim;
        scales[b] = exists ? __uint_as_float(LoadOnce<1>(all + 4 * g).w[0]) : 0.0f;
      }
    }
  }

 private:
  __device__ void LoadAll(const Tile& tile, int g, int t) {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const std::byte* block = tile.blocks[b].address;
      LoadChunks<Kv, 32 * Kv::kBytes>(block + (g * S::kDim + 8 * t) * Kv::kBytes, chunks[b]);
      if constexpr (Kv::kScaled) {
        const auto scale = LoadOnce<1, 2 * kBlockTokens * S::kDim>(block + 4 * g);
        scales[b] = __uint_as_float(scale.w[0]);
      }
    }
  }
};

// The values of a tile. Lane 4 g + t holds dimensions 64 c + 8 g .. + 7 of tokens 2 t and 2 t + 1
// of both blocks; element e in [0, kDim / 8) is dimension 64 (e / 8) + 8 g + e % 8.
template <class S>
struct Values {
  using Kv = typename S::Kv;
  Chunk<Kv> chunks[kTileBlocks][2][S::kDim / 64];
  float scales[kTileBlocks];  // of token g

  // What is not seen is zero: its weights are.
  __device__ void Load(const Tile& tile, int head_dim) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
    if (!S::kPadded && tile.full()) return LoadAll(tile, g, t);
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const SeenBlock& block = tile.blocks[b];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 2 * t + i;
        const std::byte* value = block.address + (kBlockTokens + token) * head_dim * Kv::kBytes;
#pragma unroll
        for (int c = 0; c < S::kDim / 64; ++c) {
          chunks[b][i][c] = {};
          if (token >= block.tokens) continue;
          chunks[b][i][c] = LoadChunk<Kv, S::kDim, S::kPadded>(value, 64 * c + 8 * g, head_dim);
        }
      }
      if constexpr (Kv::kScaled) {
        const std::byte* all = block.address + 2 * kBlockTokens * head_dim + 4 * kBlockTokens;
        scales[b] = g < block.tokens ? __uint_as_float(LoadOnce<1>(all + 4 * g).w[0]) : 0.0f;
      }
    }
  }

 private:
  __device__ void LoadAll(const Tile& tile, int g, int t) {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const std::byte* block = tile.blocks[b].address;
      const std::byte* values = block + ((kBlockTokens + 2 * t) * S::kDim + 8 * g) * Kv::kBytes;
      LoadChunks<Kv, 64 * Kv::kBytes>(values, chunks[b][0]);
      LoadChunks<Kv, 64 * Kv::kBytes>(values + S::kDim * Kv::kBytes, chunks[b][1]);
      if constexpr (Kv::kScaled) {
        const auto scale =
            LoadOnce<1, 2 * kBlockTokens * S::kDim + 4 * kBlockTokens>(block + 4 * g);
        scales[b] = __uint_as_float(scale.w[0]);
      }
    }
  }
};

// The heads of a group as the second operand, in shared memory: lane 4 g + t uses the dimensions
// that it has of keys, of head g. It turns those by itself, so lanes need not wait.
template <class S>
class Query {
 public:
  // Of [kHeads][kQueryStride] each: what is given, and the warp's own.
  __device__ Query(const uint16_t* raw, uint16_t* turned, const RopeTable& rope, int half_dim)
      : raw_(raw + Own()), turned_(turned + Own()), rope_(rope), half_dim_(half_dim) {}

  __device__ Words<4> Get(int j) const { return *At(now_, j); }

  // By `distance` from where it is given.
  __device__ void Turn(int distance) {
    now_ = distance == kRaw ? raw_ : turned_;
    if (distance == kRaw || distance == distance_) return;
    distance_ = distance;
#pragma unroll 1
    for (int j = 0; j < S::kDim / 64; ++j) {
      float4 turns[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int pair = 32 * j + threadIdx.x % 4 * 8 + 2 * r;
        turns[r] = {};
        if (S::kPadded && pair >= half_dim_) continue;
        turns[r] = TurnsOf(rope_, half_dim_, distance, pair);
      }
      Words<4> first = *At(raw_, j);
      Words<4> second = *At(raw_, j + S::kDim / 64);
#pragma unroll
      for (int r = 0; r < 4; ++r) cuda::Turn(first.w[r], second.w[r], turns[r]);
      *At(turned_, j) = first;
      *At(turned_, j + S::kDim / 64) = second;
    }
  }

 private:
  __device__ static int Own() {
    return threadIdx.x % 32 / 4 * S::kQueryStride + threadIdx.x % 4 * 8;
  }
  template <class T>
  __device__ static auto* At(T* query, int j) {
    using Chunk = std::conditional_t<std::is_const_v<T>, const Words<4>, Words<4>>;
    return reinterpret_cast<Chunk*>(query + 32 * j);
  }

  const uint16_t* raw_;
  uint16_t* turned_;
  const uint16_t* now_ = nullptr;
  const RopeTable& rope_;
  int half_dim_;
  int distance_ = kRaw;  // of what is in `turned_`
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

// `turns`: of the places in a rotary page, [kPageTokens][kTurnStride], as StoreTurns orders them.
template <class S>
__device__ void Score(const Keys<S>& keys, const Tile& tile, const float* turns, float factor,
                      Query<S>& query, Scores& scores) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  Words<4> wide[kTileBlocks][S::kDim / 32];
#pragma unroll
  for (int b = 0; b < kTileBlocks; ++b) {
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) wide[b][j] = S::Kv::Widen(keys.chunks[b][j]);
    if (tile.blocks[b].offset < 0) continue;
    const auto* row =
        reinterpret_cast<const float4*>(turns + (tile.blocks[b].offset + g) * S::kTurnStride);
#pragma unroll
    for (int j = 0; j < S::kDim / 64; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        Turn(wide[b][j].w[r], wide[b][j + S::kDim / 64].w[r], row[16 * j + 4 * r + t]);
      }
    }
  }
  query.Turn(tile.blocks[0].distance);
  Multiply<S>(wide, query, scores);
  const bool elsewhere =
      tile.blocks[1].tokens > 0 && tile.blocks[1].distance != tile.blocks[0].distance;
  if (elsewhere) {  // the second block lies in another rotary page
    Scores second;
    query.Turn(tile.blocks[1].distance);
    Multiply<S>(wide, query, second);
    scores[2] = second[2];
    scores[3] = second[3];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int b = i / 2;
    float scale = factor;
    if constexpr (S::Kv::kScaled) scale *= keys.scales[b];
    scores[i] = g < tile.blocks[b].tokens ? scores[i] * scale : -INFINITY;
  }
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
    uint32_t b[kTileBlocks];
    Words<4> wide[kTileBlocks][2][S::kDim / 64];
#pragma unroll
    for (int i = 0; i < kTileBlocks; ++i) {
      float scale = 1.0f;
      if constexpr (S::Kv::kScaled) scale = values.scales[i];
      b[i] = Transpose(PackBf16(weights[2 * i] * scale, weights[2 * i + 1] * scale));
#pragma unroll
      for (int c = 0; c < S::kDim / 64; ++c) {
        wide[i][0][c] = S::Kv::Widen(values.chunks[i][0][c]);
        wide[i][1][c] = S::Kv::Widen(values.chunks[i][1][c]);
      }
    }
#pragma unroll
    for (int m = 0; m < S::kDim / 16; ++m) {
      const int e = m + S::kDim / 16;
      const uint32_t a[4] = {PairOf(wide[0], m), PairOf(wide[0], e), PairOf(wide[1], m),
                             PairOf(wide[1], e)};
      MultiplyAdd(out[m], a, b[0], b[1]);
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
            out[m][c], out[m + 1][c], out[m + 2][c], out[m + 3][c]};
      }
    }
  }
};

}  // namespace everlong::cuda::decode
