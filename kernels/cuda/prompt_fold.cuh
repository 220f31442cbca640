// What warps do with tiles of keys and values: their query rows' scores, and their results.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/prompt_tiles.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/shared_memory.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::prompt {

// Of the CTA's rows, lane 4 g + t of a warp has rows Row(tile, half) = 16 tile + 8 half + g.
template <class S>
__device__ int Row(int tile, int half) {
  return threadIdx.x / 32 * S::kWarpRows + 16 * tile + 8 * half + threadIdx.x % 32 / 4;
}

// The warp's query rows as first operands, for keys of the window or, `far`, for others.
template <class S>
struct Query {
  uint32_t a[S::kRowTiles][S::kDim / 16][4];

  __device__ void Load(const AttentionArgs& args, const Reading& reading, const RopeTable& rope,
                       bool far) {
    const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Rows past the last are the last token's, so that all are finite where that one is.
        const int row = Row<S>(tile, half);
        const int token = min(row / reading.group, reading.num_tokens - 1);
        const int64_t head = reading.first_head + row % reading.group;
        LoadRow(static_cast<const uint16_t*>(args.q) + (reading.first_row + token) * args.q_stride +
                    head * head_dim,
                head_dim, tile, half);
        if (!reading.rotate) continue;
        const bool clipped = far && reading.clip_distance != kRaw;
        const int distance =
            clipped ? reading.clip_distance : reading.position() + token + reading.shift;
        TurnRow(rope, distance, head_dim / 2, tile, half);
      }
    }
  }

 private:
  // Of a step's first or second eight dimensions.
  __device__ static int Dim(int step, int part) {
    return 16 * step + 8 * part + threadIdx.x % 4 * 2;
  }

  __device__ void LoadRow(const uint16_t* q, int head_dim, int tile, int half) {
#pragma unroll
    for (int step = 0; step < S::kDim / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint32_t& word = a[tile][step][half + 2 * part];
        int dim = Dim(step, part);
        if constexpr (S::kPadded) {
          const PaddedDim<S::kDim> padded(dim, head_dim);
          word = 0;
          if (!padded.exists) continue;
          dim = padded.stored;
        }
        word = *reinterpret_cast<const uint32_t*>(q + dim);
      }
    }
  }

  __device__ void TurnRow(const RopeTable& rope, int distance, int half_dim, int tile, int half) {
#pragma unroll
    for (int step = 0; step < S::kDim / 32; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int pair = Dim(step, part);
        if (S::kPadded && pair >= half_dim) continue;
        const int i = half + 2 * part;
        Turn(a[tile][step][i], a[tile][step + S::kDim / 32][i],
             TurnsOf(rope, half_dim, distance, pair));
      }
    }
  }
};

// Scores or weights of a step's keys: lane 4 g + t holds keys 8 n + 2 t and 8 n + 2 t + 1 for rows
// g (0, 1) and g + 8 (2, 3) of a tile.
template <class S>
using Scores = float[S::kRowTiles][S::kStepKeys / 8][4];

// `keys`: the address of the first.
template <class S>
__device__ void Multiply(const Query<S>& query, uint32_t keys, Scores<S>& scores) {
  const int lane = threadIdx.x % 32;
  const uint32_t own = keys + Tiles<S>::ChunkOffset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < S::kDim / 16; ++step) {
#pragma unroll
    for (int n = 0; n < S::kStepKeys / 8; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, (own ^ (step << 5)) + n * 8 * S::kVectorBytes);
#pragma unroll
      for (int tile = 0; tile < S::kRowTiles; ++tile) {
        MultiplyAdd(scores[tile][n], query.a[tile][step], b[0], b[1]);
        MultiplyAdd(scores[tile][n + 1], query.a[tile][step], b[2], b[3]);
      }
    }
  }
}

// A lane's rows see the keys up to `last` of row 0 and, where those are of the window, one more for
// every token; the scores' first key is `first`.
template <class S>
__device__ void Mask(const Reading& reading, bool far, int first, Scores<S>& scores) {
#pragma unroll
  for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last = far ? reading.num_far * kBlockTokens - 1
                           : reading.first + Row<S>(tile, half) / reading.group;
#pragma unroll
      for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = first + 8 * n + static_cast<int>(threadIdx.x) % 4 * 2 + i;
          if (key > last) scores[tile][n][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

// What the warp's rows have folded. Lane 4 g + t holds dimensions 8 n + 2 t and 8 n + 2 t + 1 of
// rows g (0, 1) and g + 8 (2, 3) of a tile.
template <class S>
struct Folded {
  float out[S::kRowTiles][S::kDim / 8][4] = {};
  float top[S::kRowTiles][2];       // what weights are relative to, of base 2
  float sum[S::kRowTiles][2] = {};  // of the lane's own keys' weights

  __device__ Folded() {
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) top[tile][0] = top[tile][1] = -INFINITY;
  }

  // Turns scores into weights.
  __device__ void Weigh(Scores<S>& scores, float factor) {
    float max[S::kRowTiles][2];
    bool rises = false;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[tile][half] = scores[tile][0][2 * half];
#pragma unroll
        for (int n = 0; n < S::kStepKeys / 8; ++n) {
          max[tile][half] = fmaxf(max[tile][half],
                                  fmaxf(scores[tile][n][2 * half], scores[tile][n][2 * half + 1]));
        }
        rises |= max[tile][half] * factor > top[tile][half] + kSlack;
      }
    }
    if (__any_sync(~0u, rises)) Raise(max, factor);
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores[tile][n][i];
          score = Exp2(fmaf(score, factor, -top[tile][i / 2]));
          sum[tile][i / 2] += score;
        }
      }
    }
  }

  // `values`: the address of the first.
  __device__ void Add(const Scores<S>& weights, uint32_t values) {
    const int lane = threadIdx.x % 32;
    const uint32_t own = values + Tiles<S>::ChunkOffset(lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < S::kStepKeys / 16; ++step) {
      uint32_t a[S::kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &weights[tile][2 * step + i / 2][i % 2 * 2];
          a[tile][i] = PackBf16(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < S::kDim / 8; n += 2) {
        uint32_t b[4];
        LoadTransposed(b, (own ^ (n << 4)) + step * 16 * S::kVectorBytes);
#pragma unroll
        for (int tile = 0; tile < S::kRowTiles; ++tile) {
          MultiplyAdd(out[tile][n], a[tile], b[0], b[1]);
          MultiplyAdd(out[tile][n + 1], a[tile], b[2], b[3]);
        }
      }
    }
  }

  __device__ void Store(const AttentionArgs& args, const Reading& reading) const {
    const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = ReduceWarp<4>(sum[tile][half], Sum());
        const int row = Row<S>(tile, half);
        const int token = row / reading.group;
        if (token >= reading.num_tokens) continue;
        const int64_t result = int64_t{reading.first_row + token} * args.q_heads +
                               reading.first_head + row % reading.group;
        if (args.lse != nullptr && threadIdx.x % 4 == 0) {
          args.lse[result] = fmaf(top[tile][half], kLn2, logf(total));
        }
        StoreRow(static_cast<uint16_t*>(args.out) + result * head_dim, head_dim, 1.0f / total, tile,
                 half);
      }
    }
  }

 private:
  // Of rows that need it, and no others: what it does to a row depends on that row only.
  __device__ void Raise(const float (&lane_max)[S::kRowTiles][2], float factor) {
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float max = factor * ReduceWarp<4>(lane_max[tile][half], Max());
        if (!(max > top[tile][half] + kSlack)) continue;
        const float keep = Exp2(top[tile][half] - max);
        top[tile][half] = max;
        sum[tile][half] *= keep;
#pragma unroll
        for (int n = 0; n < S::kDim / 8; ++n) {
          out[tile][n][2 * half] *= keep;
          out[tile][n][2 * half + 1] *= keep;
        }
      }
    }
  }

  __device__ void StoreRow(uint16_t* to, int head_dim, float factor, int tile, int half) const {
#pragma unroll
    for (int n = 0; n < S::kDim / 8; ++n) {
      int dim = 8 * n + threadIdx.x % 4 * 2;
      if constexpr (S::kPadded) {
        const PaddedDim<S::kDim> padded(dim, head_dim);
        if (!padded.exists) continue;
        dim = padded.stored;
      }
      *reinterpret_cast<uint32_t*>(to + dim) =
          PackBf16(out[tile][n][2 * half] * factor, out[tile][n][2 * half + 1] * factor);
    }
  }
};

// The places in the window of a warp's first and last row.
template <class S>
struct WarpRows {
  int first;
  int last;

  __device__ explicit WarpRows(const Reading& reading)
      : first(threadIdx.x / 32 * S::kWarpRows / reading.group),
        last((threadIdx.x / 32 * S::kWarpRows + S::kWarpRows - 1) / reading.group) {
    // Without rows, they see nothing.
    last = first < reading.num_tokens ? last + reading.first : -1;
    first += reading.first;
  }
};

// Folds what the warp's rows see of a tile, `factor` being what turns scores to base 2.
template <class S>
__device__ void Fold(const Reading& reading, const WarpRows<S>& rows, const Tiles<S>& tiles,
                     const Query<S>& query, int32_t tile, float factor, Folded<S>& folded) {
  if (rows.last < 0) return;
  const bool far = tile < reading.far_tiles;
  const int far_last = reading.num_far * kBlockTokens - 1;
  const int first = reading.FirstKey<S>(tile);
#pragma unroll 1
  for (int i = 0; i < S::kTileKeys; i += S::kStepKeys) {
    if (first + i > (far ? far_last : rows.last)) return;
    Scores<S> scores;
    Multiply<S>(query, tiles.Keys(tile) + i * S::kVectorBytes, scores);
    if (first + i + S::kStepKeys - 1 > (far ? far_last : rows.first)) {
      Mask<S>(reading, far, first + i, scores);
    }
    folded.Weigh(scores, factor);
    folded.Add(scores, tiles.Values(tile) + i * S::kVectorBytes);
  }
}

}  // namespace everlong::cuda::prompt
