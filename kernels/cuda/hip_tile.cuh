// Sixteen probed keys in shared memory, right operands of matrix products with query rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/hip_keys.cuh"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::hip {

inline constexpr int kTileKeys = 16;

// Keys as stored, by chunks of eight dimensions; behind them their scales, where they have any.
template <class S>
struct KeyTile {
  using Kv = typename S::Kv;
  static constexpr int kChunks = S::kDim / 8;
  static constexpr int kChunkBytes = 8 * Kv::kBytes;
  static constexpr int kKeyBytes = kChunks * kChunkBytes;
  static constexpr int kScales = kTileKeys * kKeyBytes;  // where they are
  static constexpr int kBytes = kScales + (Kv::kScaled ? 4 * kTileKeys : 0);

  // Chunks are moved about, four together, so that those that lanes read at once lie in different
  // banks.
  __device__ static int Offset(int key, int chunk) {
    constexpr int kFoursInLine = 128 / (4 * kChunkBytes);
    constexpr int kFours = kFoursInLine < S::kSteps ? kFoursInLine : S::kSteps;
    constexpr int kKeysInLine = kKeyBytes < 128 ? 128 / kKeyBytes : 1;
    return key * kKeyBytes + (chunk ^ (key / kKeysInLine % kFours * 4)) * kChunkBytes;
  }

  // A warp begins to copy them.
  __device__ static void Request(std::byte* tile, const std::byte* const* keys, int head_dim) {
    constexpr int kCopies = kTileKeys * kChunks / 32;  // of a lane
    constexpr int kBatch = kCopies < 8 ? kCopies : 8;
    const auto lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t to = SharedAddress(tile);
#pragma unroll
    for (int first = 0; first < kCopies; first += kBatch) {
      const std::byte* from[kBatch];  // read together, for copies keep their order
#pragma unroll
      for (int i = 0; i < kBatch; ++i) from[i] = keys[(32 * (first + i) + lane) / kChunks];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int item = 32 * (first + i) + lane;
        const int chunk = item % kChunks;
        RequestChunk(to + Offset(item / kChunks, chunk), from[i], 8 * chunk, head_dim);
      }
    }
  }

  __device__ static void RequestScale(std::byte* tile, int key, const std::byte* scale) {
    if constexpr (Kv::kScaled) CopyAsync<4>(SharedAddress(tile + kScales + 4 * key), scale);
  }

  // Those that the lane multiplies of a key: 32 step + 8 t and on.
  __device__ static Words<4> Load(const std::byte* tile, int key, int step) {
    const int chunk = 4 * step + static_cast<int>(threadIdx.x) % 4;
    return Kv::Widen(*reinterpret_cast<const Chunk<Kv>*>(tile + Offset(key, chunk)));
  }

  __device__ static float Scale(const std::byte* tile, int key) {
    if constexpr (!Kv::kScaled) return 1.0f;
    return reinterpret_cast<const float*>(tile + kScales)[key];
  }

 private:
  __device__ static void RequestChunk(uint32_t to, const std::byte* key, int dim, int head_dim) {
    if constexpr (!S::kPadded) {
      CopyAsync<kChunkBytes>(to, key + dim * Kv::kBytes);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const PaddedDim<S::kDim> at(dim + 4 * half, head_dim);
        CopyAsync<kChunkBytes / 2>(to + half * (kChunkBytes / 2),
                                   at.exists ? key + at.stored * Kv::kBytes : key, at.exists);
      }
    }
  }
};

// The turns of positions 0 to 15 in shared memory, as lanes of products need them.
template <class S>
struct KeyTurns {
  // Two turns each; rows are longer than they must be for the sake of banks.
  float4 rows[kTileKeys][S::kDim / 4 + 4];

  // By all threads of a CTA.
  __device__ void Fill(const RopeTable& rope, int half_dim) {
    for (int i = threadIdx.x; i < kTileKeys * S::kDim / 4; i += blockDim.x) {
      const int position = i / (S::kDim / 4);
      const int place = i % (S::kDim / 4);
      const int pair = place / 16 * 32 + place % 4 * 8 + place / 4 % 4 * 2;
      if (pair < half_dim) rows[position][place] = TurnsOf(rope, half_dim, position, pair);
    }
  }

  // Of pairs 32 step + 8 t + 2 i and the next.
  __device__ float4 At(int position, int step, int i) const {
    return rows[position][(step * 4 + i) * 4 + threadIdx.x % 4];
  }
};

// Some query rows of a list as one side's probes see them, in a warp's registers.
template <class S>
class QueryRows {
 public:
  // `from`: their first tile.
  __device__ void Load(const uint4* from) {
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < S::kSteps; ++j) {
        rows_[tile][j].Load(from + (tile * S::kSteps + j) * kRowsWords);
      }
    }
  }

  // The best product with a row that the lane's key (OwnKey) has. The keys are turned to
  // `position`, a multiple of their number, and those that follow it.
  template <bool kTurned>
  __device__ float Best(const std::byte* tile, const RopeTable& rope, const KeyTurns<S>& turns,
                        int half_dim, int position) const {
    const int key = static_cast<int>(threadIdx.x) % 32 / 4;
    Sums sums = {};
#pragma unroll
    for (int j = 0; j < S::kSteps / 2; ++j) {
      Words<4> keys[2][2];  // both dimensions of each pair, of keys g and g + 8
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        keys[0][i] = KeyTile<S>::Load(tile, key + 8 * i, j);
        keys[1][i] = KeyTile<S>::Load(tile, key + 8 * i, j + S::kSteps / 2);
      }
      if (kTurned) TurnKeys(keys, rope, turns, half_dim, position, j);
      Add(j, keys[0], sums);
      Add(j + S::kSteps / 2, keys[1], sums);
    }
    return BestSum(sums) * KeyTile<S>::Scale(tile, OwnKey());
  }

  // Lanes 16 and on have the keys of those before them.
  __device__ static int OwnKey() {
    const auto lane = static_cast<int>(threadIdx.x) % 32;
    return lane / 4 % 2 * 8 + lane % 4 * 2 + lane / 8 % 2;
  }

 private:
  struct Sums {
    float of[2][S::kRowTiles][4];  // of keys 0 to 7, and of 8 to 15
  };

  __device__ static void TurnKeys(Words<4> (&keys)[2][2], const RopeTable& rope,
                                  const KeyTurns<S>& turns, int half_dim, int position, int step) {
    const int key = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pair = 32 * step + 8 * (static_cast<int>(threadIdx.x) % 4) + 2 * i;
      if (S::kPadded && pair >= half_dim) continue;
      const float4 first = TurnsOf(rope, half_dim, position, pair);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        Turn(keys[0][k].w[i], keys[1][k].w[i], Combine(first, turns.At(key + 8 * k, step, i)));
      }
    }
  }

  __device__ void Add(int step, const Words<4> (&keys)[2], Sums& sums) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int tile = 0; tile < S::kRowTiles; ++tile) {
          AddHalf(rows_[tile][step], keys[i], half, sums.of[i][tile]);
        }
      }
    }
  }

  // Every exchange halves the keys of a lane.
  __device__ static float BestSum(const Sums& sums) {
    float best[2][2];  // of keys 2 t and 2 t + 1, and of those 8 on
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      best[i / 2][i % 2] = -INFINITY;
#pragma unroll
      for (const float(&tile)[4] : sums.of[i / 2]) {
        best[i / 2][i % 2] = fmaxf(best[i / 2][i % 2], fmaxf(tile[i % 2], tile[i % 2 + 2]));
      }
    }
    const bool high = threadIdx.x / 4 % 2 != 0;
    float even = Exchange(high ? best[1][0] : best[0][0], high ? best[0][0] : best[1][0], 4);
    float odd = Exchange(high ? best[1][1] : best[0][1], high ? best[0][1] : best[1][1], 4);
    const bool second = threadIdx.x / 8 % 2 != 0;
    const float own = Exchange(second ? odd : even, second ? even : odd, 8);
    return Exchange(own, own, 16);
  }
  __device__ static float Exchange(float kept, float sent, int lanes) {
    return fmaxf(kept, __shfl_xor_sync(~0u, sent, lanes));
  }

  Rows rows_[S::kRowTiles][S::kSteps];
};

}  // namespace everlong::cuda::hip
