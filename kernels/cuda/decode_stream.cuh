// Tiles on their way through shared memory to the warps that fold them one after the other, and
// how such a warp scores their keys.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/shared_memory.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::decode {

// The opened keys of a tile. Lane 4 g + t holds dimensions 32 j + 8 t .. + 7 of token g of both
// blocks.
template <class S>
struct Keys {
  Words<4> chunks[kTileBlocks][S::kDim / 32];
  float scales[kTileBlocks];
};

// The next tile of a warp, as it is stored: the lanes' copies of 16 bytes make up cache lines.
// Where vectors are not padded, their units of 16 bytes are permuted such that lanes that read at
// the same time meet different banks. Keys and values are started in turns, keys first.
template <class S>
class Incoming {
  using Kv = typename S::Kv;
  static constexpr int kVectorBytes = S::kDim * Kv::kBytes;
  static constexpr int kBlockBytes = kBlockTokens * kVectorBytes;  // of keys or values
  static_assert(kBlockBytes % 512 == 0);
  static constexpr int kScaleBytes = Kv::kScaled ? kBlockTokens * 4 : 0;
  static constexpr int kPartBytes = kTileBlocks * (kBlockBytes + kScaleBytes);

 public:
  static constexpr int kBytes = 2 * kPartBytes;

  // `shared`: the warp's kBytes.
  __device__ Incoming(std::byte* shared, int head_dim) : shared_(shared), head_dim_(head_dim) {}

  // After Take of what was started before.
  __device__ void StartKeys(const Tile& tile) const { Start<0>(tile); }
  __device__ void StartValues(const Tile& tile) const { Start<1>(tile); }

  __device__ void Take(Keys<S>& keys) const {
    const int g = Lane() / 4;
    const int t = Lane() % 4;
    Await();
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < S::kDim / 32; ++j) {
        keys.chunks[b][j] = Kv::Open(Read<0>(b, g, 32 * j + 8 * t));
      }
      if constexpr (Kv::kScaled) keys.scales[b] = Scales<0>(b)[g];
    }
  }

  // What `tile` does not have is zero: its weights are.
  __device__ void Take(const Tile& tile, Values<S>& values) const {
    const int g = Lane() / 4;
    const int t = Lane() % 4;
    Await();
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int c = 0; c < S::kDim / 64; ++c) {
          values.chunks[b][i][c] = Read<1>(b, 2 * t + i, 64 * c + 8 * g);
        }
      }
      if constexpr (Kv::kScaled) values.scales[b] = Scales<1>(b)[g];
    }
    if (tile.full()) return;
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * t + i < tile.blocks[b].tokens) continue;
#pragma unroll
        for (int c = 0; c < S::kDim / 64; ++c) values.chunks[b][i][c] = {};
      }
      if constexpr (Kv::kScaled) {
        if (g >= tile.blocks[b].tokens) values.scales[b] = 0.0f;
      }
    }
  }

 private:
  __device__ static int Lane() {
    return threadIdx.x % 32;
  }

  // All but what was started last has arrived, for all lanes.
  __device__ static void Await() {
    AwaitCopies<1>();
    __syncwarp();
  }

  // Which units of a token's vector change places: unit u lies at u ^ Swap(token).
  template <int kPart>
  __device__ static constexpr int Swap(int token) {
    constexpr int kUnits = kVectorBytes / 16;
    if (S::kPadded) return 0;
    if (kPart == 1) return token / 2 * 2 % kUnits;
    if (Kv::kBytes == 2) return token % 2 * 4;
    return kUnits == 8 ? token % 4 * 2 : token / 2 % 2 * 2;
  }

  template <int kPart>
  __device__ std::byte* Block(int b) const {
    return shared_ + kPart * kPartBytes + b * kBlockBytes;
  }
  template <int kPart>
  __device__ float* Scales(int b) const {
    return reinterpret_cast<float*>(Block<kPart>(kTileBlocks)) + b * kBlockTokens;
  }

  template <int kPart>
  __device__ void Start(const Tile& tile) const {
    __syncwarp();  // the others have taken what is there
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const bool exists = tile.blocks[b].tokens > 0;
      const int vector_bytes = S::kPadded ? head_dim_ * Kv::kBytes : kVectorBytes;
      const std::byte* from = tile.blocks[b].address + kPart * kBlockTokens * vector_bytes;
      const uint32_t to = SharedAddress(Block<kPart>(b));
      [&]<int... i>(std::integer_sequence<int, i...>) {
        (CopyUnits<kPart, 512 * i>(to, from, vector_bytes, exists), ...);
      }
      (std::make_integer_sequence<int, kBlockBytes / 512>());
      if constexpr (Kv::kScaled) {
        if (Lane() >= kScaleBytes / 16) continue;
        const std::byte* scales =
            tile.blocks[b].address + 2 * kBlockTokens * vector_bytes + kPart * kScaleBytes;
        CopyAsync<16>(SharedAddress(Scales<kPart>(b) + 4 * Lane()), scales + 16 * Lane(), exists);
      }
    }
    EndCopies();
  }

  // A unit for each lane of the block's vectors from byte kAt on.
  template <int kPart, int kAt>
  __device__ void CopyUnits(uint32_t to, const std::byte* from, int vector_bytes,
                            bool exists) const {
    const int unit = kAt / 16 + Lane();
    if constexpr (S::kPadded) {
      if (16 * unit >= kBlockTokens * vector_bytes) return;
      CopyAsync<16>(to + 16 * unit, from + 16 * unit, exists);
    } else {
      constexpr int kUnits = kVectorBytes / 16;
      const int swap = Swap<kPart>(unit / kUnits);
      CopyAsync<16, kAt, kAt>(to + 16 * (Lane() ^ swap), from + 16 * Lane(), exists);
    }
  }

  // Dimensions [dim, dim + 8) of a token's key or value.
  template <int kPart>
  __device__ Chunk<Kv> Read(int b, int token, int dim) const {
    const std::byte* block = Block<kPart>(b);
    if constexpr (S::kPadded) {
      return PaddedChunk<Kv, S::kDim>(dim, head_dim_, [&](int stored) {
        return *reinterpret_cast<const Words<Kv::kBytes>*>(block + (token * head_dim_ + stored) *
                                                                       Kv::kBytes);
      });
    } else {
      const int at = dim * Kv::kBytes;
      const int unit = at / 16 ^ Swap<kPart>(token);
      return *reinterpret_cast<const Chunk<Kv>*>(block + token * kVectorBytes + 16 * unit +
                                                 at % 16);
    }
  }

  std::byte* shared_;
  int head_dim_;
};

// The heads of a group as the second operand, in shared memory: lane 4 g + t uses the dimensions
// that it has of keys, of head g; where there are at most four, head g + 4 is head g again. What
// turns it is copied ahead of being needed.
template <class S>
class Query {
  static constexpr int kStride = S::kDim + 32;  // of heads, keeps lanes out of each other's banks
  static constexpr int kTurnBytes = S::kDim * 4;

 public:
  static constexpr int kRawBytes = kHeads * kStride * 2;
  static constexpr int kOwnBytes = kRawBytes + 2 * kTurnBytes;

  // `raw`: of the CTA, `own`: of the warp.
  __device__ Query(std::byte* raw, std::byte* own, const RopeTable& rope, int half_dim, int heads)
      : raw_(reinterpret_cast<uint16_t*>(raw)),
        turned_(reinterpret_cast<uint16_t*>(own)),
        page_(reinterpret_cast<float4*>(own + kRawBytes)),
        rest_(reinterpret_cast<float4*>(own + kRawBytes + kTurnBytes)),
        rope_(rope),
        half_dim_(half_dim),
        few_(heads <= kHeads / 2) {}

  // Of `heads` heads, the CTA's share of the thread; zeros where there are no more.
  __device__ void StoreRaw(const uint16_t* q, int heads) const {
    const int rows = few_ ? kHeads / 2 : kHeads;
    for (int i = threadIdx.x; i < rows * (S::kDim / 4); i += blockDim.x) {
      const int head = i / (S::kDim / 4);
      const int dim = i % (S::kDim / 4) * 4;
      const PaddedDim<S::kDim> at(dim, 2 * half_dim_);
      uint2 four = {};
      if (head < heads && at.exists) {
        four = *reinterpret_cast<const uint2*>(q + head * 2 * half_dim_ + at.stored);
      }
      *reinterpret_cast<uint2*>(raw_ + head * kStride + dim) = four;
    }
  }

  // Starts to copy what turns it by `distance`, in the copies' current group.
  __device__ void Expect(int distance) {
    if (distance == kRaw || distance == expected_) return;
    expected_ = distance;
    __syncwarp();  // the others have read what is there
    const float2* row = rope_.page + (distance >> 6 & 1023) * half_dim_;
    for (int unit = Lane(); unit < half_dim_ / 2; unit += 32) {
      CopyAsync<16>(SharedAddress(page_ + unit), row + 2 * unit);
    }
  }

  // Turns it by `distance` from where it is given; what was expected has arrived.
  __device__ void Turn(int distance) {
    now_ = distance == kRaw ? raw_ : turned_;
    if (distance == kRaw || distance == distance_) return;
    distance_ = distance;
    if (distance != expected_) {
      Expect(distance);
      EndCopies();
      AwaitCopies<0>();
    }
    Prepare(distance);
    __syncwarp();  // the others are done with what was turned before
#pragma unroll 1
    for (int j = few_ ? Lane() / 16 : 0; j < S::kDim / 64; j += few_ ? 2 : 1) {
      Words<4> first = *At(raw_, j);
      Words<4> second = *At(raw_, j + S::kDim / 64);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int i = 16 * j + Lane() % 4 * 4 + r;
        const bool exists = !S::kPadded || i < half_dim_ / 2;
        cuda::Turn(first.w[r], second.w[r], exists ? Combine(page_[i], rest_[i]) : float4());
      }
      *At(turned_, j) = first;
      *At(turned_, j + S::kDim / 64) = second;
    }
    __syncwarp();
  }

  // Reads what turns it by `distance` beside the page's row, unless that was read for another.
  __device__ void Prepare(int distance) {
    const int rest = distance & ~(1023 << 6);
    if (distance == kRaw || rest == prepared_) return;
    prepared_ = rest;
    __syncwarp();
    const auto* high = reinterpret_cast<const float4*>(rope_.high + (distance >> 16) * half_dim_);
    const auto* offset =
        reinterpret_cast<const float4*>(rope_.offset + (distance & 63) * half_dim_);
    for (int i = Lane(); i < half_dim_ / 2; i += 32) rest_[i] = Combine(high[i], offset[i]);
    __syncwarp();
  }

  __device__ Words<4> Get(int j) const {
    return *At(now_, j);
  }

 private:
  __device__ static int Lane() {
    return threadIdx.x % 32;
  }
  __device__ Words<4>* At(uint16_t* heads, int j) const {
    const int row = few_ ? Lane() / 4 % 4 : Lane() / 4;
    const int own = row * kStride + Lane() % 4 * 8;
    return reinterpret_cast<Words<4>*>(heads + own + 32 * j);
  }

  uint16_t* raw_;  // [heads][kStride]
  uint16_t* turned_;
  float4* page_;  // [half_dim / 2]
  float4* rest_;
  const RopeTable& rope_;
  int half_dim_;
  bool few_;  // only four heads are kept
  uint16_t* now_ = nullptr;
  int distance_ = kRaw;  // of what is in `turned_`
  int expected_ = kRaw;  // of `page_`
  int prepared_ = kRaw;  // of `rest_`
};

// Of a tile's keys, which are turned if need be, for the query that is turned for its first block.
// `turns`: as CopyTurns has them.
template <class S>
__device__ void Score(Keys<S>& keys, const Tile& tile, const float4* turns, float factor,
                      Query<S>& query, Scores& scores) {
  using Kv = typename S::Kv;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  if (tile.blocks[0].offset != kRaw) {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      // A block's first place is even: rows that are read at the same time lie in different banks.
      const float4* row = turns + (tile.blocks[b].offset + g) * (S::kDim / 4) + t;
      const int swap = g % 2 * 4;
#pragma unroll
      for (int j = 0; j < S::kDim / 64; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int at = 16 * j + 4 * r + (r % 2 == 0 ? swap : -swap);
          TurnOpened<Kv>(keys.chunks[b][j].w[r], keys.chunks[b][j + S::kDim / 64].w[r], row[at]);
        }
      }
    }
  } else {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < S::kDim / 32; ++j) keys.chunks[b][j] = Bf16Of<Kv>(keys.chunks[b][j]);
    }
  }
  Multiply<S>(keys.chunks, query, scores);
  const bool elsewhere =
      tile.blocks[1].tokens > 0 && tile.blocks[1].distance != tile.blocks[0].distance;
  if (elsewhere) {  // the second block lies in another rotary page
    Scores second;
    AwaitCopies<0>();
    __syncwarp();
    query.Turn(tile.blocks[1].distance);
    Multiply<S>(keys.chunks, query, second);
    scores[2] = second[2];
    scores[3] = second[3];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int b = i / 2;
    float scale = factor;
    if constexpr (Kv::kScaled) scale *= keys.scales[b];
    scores[i] = g < tile.blocks[b].tokens ? scores[i] * scale : -INFINITY;
  }
}

}  // namespace everlong::cuda::decode
