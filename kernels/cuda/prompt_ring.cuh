// Tiles of turned keys and of values in shared memory, for Hopper's tensor cores: one warpgroup
// loads, widens and turns them, and others multiply by them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/prompt_tiles.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::prompt {

// Two warpgroups have two tiles of 64 rows each, so that one's scores are multiplied while the
// other's are weighed; a third loads.
template <class KvType, int kDimensions>
struct HopperShape {
  using Kv = KvType;
  static constexpr int kDim = kDimensions;
  static constexpr int kFolding = 2;  // warpgroups
  static constexpr int kThreads = (kFolding + 1) * hopper::kWarpgroupThreads;
  static constexpr int kGroupRows = 128;  // of a warpgroup
  static constexpr int kRows = kFolding * kGroupRows;
  static constexpr int kTileBlocks = 8;
  static constexpr int kTileKeys = kTileBlocks * kBlockTokens;
  static constexpr int kStages = 4;
  // Per thread; what the kernel begins with, 168 for each, is all that there is.
  static constexpr int kFoldingRegisters = 216;
  static constexpr int kLoadingRegisters = 72;
  static_assert(kFolding * kFoldingRegisters + kLoadingRegisters <= 168 * (kFolding + 1));

  // Shared memory. 64 vectors make a matrix of one panel or two.
  static constexpr int kPanelBytes = 64 * hopper::kPanelRowBytes;
  static constexpr int kMatrixBytes = kDim / hopper::kPanelColumns * kPanelBytes;
  static constexpr int kStageBytes = 2 * kMatrixBytes;  // keys, then values
  static constexpr int kQueryBytes = kRows / 64 * kMatrixBytes;
  static constexpr int kSharedBytes = kQueryBytes + kStages * kStageBytes;
};

// Which stage has a tile.
template <class S>
__device__ inline uint32_t Stage(int32_t tile) {
  return static_cast<uint32_t>(tile) % S::kStages;
}

template <class S>
struct Ring {
  uint64_t full[S::kStages];   // the loading threads arrive
  uint64_t empty[S::kStages];  // the folding warps arrive

  __device__ void Init(int folding_groups) {
    for (int i = 0; i < S::kStages; ++i) {
      hopper::InitBarrier(&full[i], hopper::kWarpgroupThreads);
      hopper::InitBarrier(&empty[i], folding_groups * hopper::kWarpgroupThreads / 32);
    }
  }
  __device__ void AwaitFull(int32_t tile) {
    hopper::AwaitPhase(&full[Stage<S>(tile)], static_cast<uint32_t>(tile) / S::kStages);
  }
  __device__ void AwaitEmpty(int32_t tile) {
    if (tile < S::kStages) return;
    hopper::AwaitPhase(&empty[Stage<S>(tile)], static_cast<uint32_t>(tile) / S::kStages - 1);
  }
  __device__ void Fill(int32_t tile) { hopper::Arrive(&full[Stage<S>(tile)]); }
  __device__ void Release(int32_t tile) {
    if (threadIdx.x % 32 == 0) hopper::Arrive(&empty[Stage<S>(tile)]);
  }
};

// Turns of blocks, of a loading warp's 32 dimension pairs: of the parts of positions, high and page
// of the blocks on their way, and the products, for two blocks in turns.
struct BlockTurns {
  float2 parts[2][2][32];
  float2 offsets[kPageBlocks][32];
  float2 products[2][32];
};

// What a CTA shares but for queries, keys and values.
template <class S>
struct Shared {
  alignas(16) BlockTurns turns[4];  // of the loading warps
  Reading reading;
  Ring<S> ring;
  uint8_t tokens[S::kRows];  // of the CTA, by row
};

// The loading warpgroup. A warp loads the keys of 32 dimension pairs and the values of the same
// dimensions; lane 8 i + j has the i-th eight of the pairs, of token j of a block. So it turns keys
// in registers, and the turns of its token within a block stay there.
template <class S>
class Loader {
 public:
  using Kv = typename S::Kv;

  __device__ Loader(Shared<S>& shared, std::byte* stages, const RopeTable& rope)
      : reading_(shared.reading),
        ring_(shared.ring),
        stages_(stages),
        warp_(threadIdx.x / 32 % 4),
        lane_(threadIdx.x % 32),
        token_(lane_ % kBlockTokens),
        low_(hopper::ChunkOffset(token_, Chunk0())),
        head_(reading_.head + token_ * kVectorBytes + Chunk0() * 8 * Kv::kBytes),
        page_bytes_(static_cast<uint32_t>(reading_.page_bytes)),
        num_tiles_(reading_.num_tiles),
        turns_(shared.turns[warp_]),
        table_((lane_ < 16 ? rope.high : rope.page) + Pair0() + lane_ % 16 * 2) {
    if (!reading_.rotate) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      token_turns_[i] = *reinterpret_cast<const float4*>(rope.offset + token_ * (S::kDim / 2) +
                                                         Chunk0() * 8 + 2 * i);
    }
#pragma unroll
    for (int i = 0; i < kPageBlocks; ++i) {
      turns_.offsets[i][lane_] = rope.offset[i * kBlockTokens * (S::kDim / 2) + Pair0() + lane_];
    }
  }

  __device__ void Run() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) Request(i / kBlocks, i % kBlocks, raw_[i]);
    for (int32_t tile = 0; tile < num_tiles_; ++tile) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        AwaitCopies<kAhead - 1>();
        Finish(tile, i, raw_[i % kAhead]);
        Request(tile + (i + kAhead) / kBlocks, (i + kAhead) % kBlocks, raw_[i % kAhead]);
      }
      hopper::ShowToProducts();
      ring_.Fill(tile);
    }
  }

 private:
  static constexpr int kBlockWarps = S::kDim / 64;                  // that load one
  static constexpr int kBlocks = S::kTileBlocks * kBlockWarps / 4;  // of a tile, of a warp
  static constexpr int kAhead = 2;  // blocks that are requested before they are needed
  static constexpr int kFoundTiles = 32 / kBlocks;
  static constexpr int kVectorBytes = S::kDim * Kv::kBytes;
  static constexpr int kBlockBytes =
      2 * kBlockTokens * kVectorBytes + (Kv::kScaled ? 2 * kBlockTokens * 4 : 0);
  static_assert(kBlocks % kAhead == 0);

  // A block that is on its way.
  struct Raw {
    Chunk<Kv> keys[2];
    Chunk<Kv> values[Kv::kScaled ? 2 : 1];
    float key_scale;
    float value_scale;
    int32_t position;
  };
  struct Found {
    int32_t block;  // its place, times 16, and how many tokens of it are read
    int32_t position;
  };

  __device__ int Chunk0() const {
    return warp_ % kBlockWarps * 4 + lane_ / 8;
  }
  __device__ int Pair0() const {
    return warp_ % kBlockWarps * 32;
  }
  __device__ int BlockOf(int i) const {
    return warp_ / kBlockWarps + i * (4 / kBlockWarps);
  }

  // The lane's one of the warp's blocks of tiles [tile, tile + kFoundTiles).
  __device__ Found LookUp(int32_t tile) const {
    tile += lane_ / kBlocks;
    const int index = BlockOf(lane_ % kBlocks);
    const SeenBlock seen = reading_.Find<S>(tile, index);
    if (seen.place < 0) return {0, kRaw};
    int tokens = kBlockTokens;
    if (tile >= reading_.far_tiles) {
      const int first = reading_.template FirstKey<S>(tile) + index * kBlockTokens;
      tokens = min(tokens, reading_.last() + 1 - first);
    }
    return {seen.place * 16 + tokens, seen.position};
  }

  // Begins to load block i of the warp's of a tile, one after the other; past the last tile there
  // is nothing to load.
  __device__ void Request(int32_t tile, int i, Raw& raw) {
    if (i == 0) {
      if (tile % kFoundTiles == 0) found_ = LookUp(tile);
      if (tile < num_tiles_) ring_.AwaitEmpty(tile);
    }
    const int from = tile % kFoundTiles * kBlocks + i;
    const auto block = static_cast<uint32_t>(__shfl_sync(~0u, found_.block, from));
    raw.position = __shfl_sync(~0u, found_.position, from);
    if (tile < num_tiles_) {
      if (raw.position >= 0) RequestTurns(i % kAhead, raw.position);
      const std::byte* key = head_ + uint64_t{block / (16 * kPageBlocks)} * page_bytes_ +
                             block / 16 % kPageBlocks * kBlockBytes;
      RequestVectors(tile, i, key, token_ < block % 16, raw);
    }
    EndCopies();
  }

  // Of high and page parts of positions.
  __device__ void RequestTurns(int slot, int32_t position) const {
    const int row = position >> (lane_ < 16 ? 16 : 6) & 1023;
    CopyAsync<16>(SharedAddress(&turns_.parts[slot][0][0]) + lane_ * 16,
                  table_ + row * (S::kDim / 2));
  }

  __device__ void RequestVectors(int32_t tile, int i, const std::byte* key, bool exists, Raw& raw) {
    const std::byte* value = key + kBlockTokens * kVectorBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = half * kVectorBytes / 2;
      raw.keys[half] = {};
      if (exists) raw.keys[half] = LoadCached<2 * Kv::kBytes>(key + at);
      if constexpr (Kv::kScaled) {
        raw.values[half] = {};
        if (exists) raw.values[half] = LoadCached<2 * Kv::kBytes>(value + at);
      } else {
        CopyAsync<16>(SharedAddress(Place(tile, i, half)) + S::kMatrixBytes, value + at, exists);
      }
    }
    if constexpr (Kv::kScaled) {
      const std::byte* scales =
          key - Chunk0() * 8 - token_ * kVectorBytes + 2 * kBlockTokens * kVectorBytes + token_ * 4;
      raw.key_scale = exists ? __ldg(reinterpret_cast<const float*>(scales)) : 0.0f;
      raw.value_scale =
          exists ? __ldg(reinterpret_cast<const float*>(scales) + kBlockTokens) : 0.0f;
    }
  }

  // Where a chunk of a tile's keys belongs, of the first or second half of a vector.
  __device__ std::byte* Place(int32_t tile, int i, int half) const {
    std::byte* panel = stages_ + Stage<S>(tile) * S::kStageBytes +
                       BlockOf(i) * kBlockTokens * hopper::kPanelRowBytes;
    if constexpr (S::kDim == 128) {
      return panel + low_ + half * S::kPanelBytes;
    } else {
      return panel + (low_ ^ half << 6);
    }
  }

  // Puts what has been requested where it belongs, turned.
  __device__ void Finish(int32_t tile, int i, const Raw& raw) {
    Words<4> low = Kv::Widen(raw.keys[0]);
    Words<4> high = Kv::Widen(raw.keys[1]);
    const bool turned = raw.position >= 0;
    float2* product = turns_.products[i % 2];
    if (turned) {
      __syncwarp();  // others' parts
      const auto& parts = turns_.parts[i % kAhead];
      const float2 offset = turns_.offsets[raw.position / kBlockTokens % kPageBlocks][lane_];
      product[lane_] = Combine(parts[0][lane_], Combine(parts[1][lane_], offset));
      __syncwarp();
    }
    if (turned || Kv::kScaled) {
      const float scale = Kv::kScaled ? raw.key_scale : 1.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float4 turns = {scale, 0.0f, scale, 0.0f};
        if (turned) {
          turns = Combine(*reinterpret_cast<const float4*>(product + lane_ / 8 * 8 + 2 * j),
                          token_turns_[j]);
          if constexpr (Kv::kScaled) {
            turns = {turns.x * scale, turns.y * scale, turns.z * scale, turns.w * scale};
          }
        }
        Turn(low.w[j], high.w[j], turns);
      }
    }
    *reinterpret_cast<Words<4>*>(Place(tile, i, 0)) = low;
    *reinterpret_cast<Words<4>*>(Place(tile, i, 1)) = high;
    if constexpr (Kv::kScaled) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Words<4> value = Scaled(Kv::Widen(raw.values[half]), raw.value_scale);
        *reinterpret_cast<Words<4>*>(Place(tile, i, half) + S::kMatrixBytes) = value;
      }
    }
  }

  __device__ static Words<4> Scaled(Words<4> x, float scale) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x.w[i] = PackBf16(LowBf16(x.w[i]) * scale, HighBf16(x.w[i]) * scale);
    }
    return x;
  }

  const Reading& reading_;
  Ring<S>& ring_;
  std::byte* stages_;
  int warp_;
  int lane_;
  int token_;
  int low_;  // where a block's first row has the lane's chunk of the first half
  const std::byte* head_;
  uint32_t page_bytes_;
  int32_t num_tiles_;
  BlockTurns& turns_;
  const float2* table_;  // of which the lane copies
  float4 token_turns_[4] = {};
  Raw raw_[kAhead];
  Found found_;  // one of the warp's blocks of the tiles that are being requested
};

}  // namespace everlong::cuda::prompt
