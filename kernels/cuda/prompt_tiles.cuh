// The keys and values that a CTA's query rows read of one KV head, in tiles that come to shared
// memory while those before them are used.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/shared_memory.cuh"
#include "kernels/cuda/step.h"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::prompt {

// KV heads, parts of the longest query block for CTAs of `cta_rows`, prompts' blocks.
inline dim3 GridOf(const AttentionArgs& args, const StepPlan& plan, int cta_rows) {
  const int tokens = cta_rows / (args.q_heads / args.cache.kv_heads);
  int parts = 0;
  for (const QueryBlock& block : plan.host_blocks.subspan(plan.num_decode_blocks)) {
    parts = std::max(parts, CeilDiv(block.num_rows, tokens));
  }
  return dim3(args.cache.kv_heads, parts, plan.num_blocks - plan.num_decode_blocks);
}

// Instead of a position: nothing is turned.
inline constexpr int32_t kRaw = -1;

// Vectors have kDim dimensions, padded from head_dim where kPadded. A CTA has kWarps warps with
// kRowTiles tiles of 16 rows each; a row is a query head of a token. Rows fold kStepKeys keys at a
// time, of tiles of kTileBlocks blocks.
template <class KvType, int kDimensions, bool kPad, int kWarpCount, int kStageCount>
struct Shape {
  using Kv = KvType;
  static constexpr int kDim = kDimensions;
  static constexpr bool kPadded = kPad;
  static constexpr int kWarps = kWarpCount;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCtas = kWarps == 4 ? 2 : 1;  // on an SM
  static constexpr int kRowTiles = kDim > 128 ? 1 : 2;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kStepKeys = kDim > 64 ? 32 : 64;  // for which registers suffice
  static constexpr int kTileBlocks = kDim > 128 ? 4 : 8;
  static constexpr int kTileKeys = kTileBlocks * kBlockTokens;
  static constexpr int kWarpBlocks = kTileBlocks / kWarps;  // of a tile, those that a warp loads
  static constexpr int kStages = kStageCount;               // tiles in shared memory

  // Shared memory. Rows of turns are two pairs longer than they must be for the sake of banks.
  static constexpr int kVectorBytes = 2 * kDim;
  static constexpr int kKeyBytes = kTileKeys * kVectorBytes;
  static constexpr int kTurnBytes = 8 * (kDim / 2);
  static constexpr int kTokenTurnStride = kTurnBytes + 16;
  static constexpr int kBlockTurnBytes = 3 * kTurnBytes;
  static constexpr int kScaleBytes = Kv::kScaled ? 2 * kBlockTokens * 4 : 0;
  static constexpr int kBlockBytes = kBlockTurnBytes + kScaleBytes;
  static constexpr int kStageBytes = (2 * kKeyBytes + kTileBlocks * kBlockBytes + 1023) & ~1023;
  static constexpr int kSharedBytes = kStages * kStageBytes + kBlockTokens * kTokenTurnStride;
  static_assert(kWarpBlocks >= 1);
};

// A KV block of a tile.
struct SeenBlock {
  int32_t place;     // kPageBlocks * page + its number in the page; < 0: there is no such block
  int32_t position;  // at which the rotary embedding sees its first key, or kRaw
};

// What the rows of a CTA read: tiles of far keys, sinks and selected ones, then of the window. Lies
// in shared memory, the same for all threads.
struct Reading {
  const std::byte* head;    // of page 0
  const int32_t* pages;     // of the sequence
  const int32_t* selected;  // KV blocks
  int64_t page_bytes;
  int64_t block_bytes;
  int32_t first_row;  // of the step's tokens
  int32_t num_tokens;
  int32_t first_head;  // of the query heads
  int32_t group;       // of them; a row is one of a token
  int32_t num_sinks;   // blocks
  int32_t num_far;     // blocks
  int32_t far_tiles;
  int32_t num_tiles;
  int32_t window_begin;   // block
  int32_t first;          // the first token's place in the window
  int32_t shift;          // of positions in the window, as the rotary embedding sees them
  int32_t clip_distance;  // kRaw: far keys are turned too
  bool rotate;
  bool streaming;

  __device__ int32_t last() const { return first + num_tokens - 1; }
  __device__ int32_t position() const { return window_begin * kBlockTokens + first; }
  __device__ bool TurnsKeys(int32_t tile) const {
    return rotate && (clip_distance == kRaw || tile >= far_tiles);
  }
  // The number of its first key among the far ones or in the window.
  template <class S>
  __device__ int32_t FirstKey(int32_t tile) const {
    return (tile < far_tiles ? tile : tile - far_tiles) * S::kTileKeys;
  }
  template <class S>
  __device__ SeenBlock Find(int32_t tile, int index) const;
};

template <class S>
__device__ SeenBlock Reading::Find(int32_t tile, int index) const {
  if (tile >= num_tiles) return {-1, kRaw};
  int32_t block;
  int32_t position;
  if (tile < far_tiles) {
    const int32_t i = tile * S::kTileBlocks + index;
    if (i >= num_far) return {-1, kRaw};
    block = i < num_sinks ? i : selected[i - num_sinks];
    position = (streaming ? i : block) * kBlockTokens;
  } else {
    const int32_t i = (tile - far_tiles) * S::kTileBlocks + index;
    if (i * kBlockTokens > last()) return {-1, kRaw};
    block = window_begin + i;
    position = block * kBlockTokens + shift;
  }
  return {pages[block / kPageBlocks] * kPageBlocks + block % kPageBlocks,
          TurnsKeys(tile) ? position : kRaw};
}

// Tokens [first, first + num_tokens) of a query block.
template <class S>
__device__ Reading ReadingOf(const AttentionArgs& args, const Step& step, const QueryBlock& block,
                             int kv_head, int first, int num_tokens) {
  Reading reading = {};
  const KvCache& cache = args.cache;
  reading.page_bytes = cache.PageBytes();
  reading.block_bytes = cache.BlockBytes();
  reading.head = static_cast<const std::byte*>(cache.base) + args.layer * cache.layer_stride_bytes +
                 kv_head * kPageBlocks * reading.block_bytes;
  reading.pages = step.pages + step.page_begin[block.sequence];
  reading.first_row = block.first_row + first;
  reading.num_tokens = num_tokens;
  reading.group = args.q_heads / cache.kv_heads;
  reading.first_head = kv_head * reading.group;
  reading.num_sinks = block.num_sinks / kBlockTokens;
  reading.num_far = reading.num_sinks;
  if (block.slot >= 0) {
    const int64_t list = args.selection.List(args.layer, block.slot, kv_head, kFinalList);
    reading.selected = args.selection.blocks + list * args.selection.capacity;
    reading.num_far += args.selection.counts[list];
  }
  reading.window_begin = static_cast<int32_t>(block.window_begin / kBlockTokens);
  reading.first = static_cast<int32_t>(step.positions[reading.first_row] - block.window_begin);
  reading.far_tiles = (reading.num_far + S::kTileBlocks - 1) / S::kTileBlocks;
  reading.num_tiles = reading.far_tiles + reading.last() / S::kTileKeys + 1;
  reading.rotate = args.rotate;
  reading.streaming = block.positions == Positions::kStreaming;
  const bool clipped = block.positions == Positions::kClipped;
  reading.clip_distance = clipped ? block.clip_distance : kRaw;
  if (reading.streaming) reading.shift = reading.num_far * kBlockTokens;
  if (reading.streaming || clipped) reading.shift -= reading.window_begin * kBlockTokens;
  return reading;
}

// A ring of tiles in shared memory. A warp loads kWarpBlocks blocks of every tile and makes of them
// what matrix products need, so that a tile is complete once all warps have done so and met. Of a
// block, lane 8 i + j has chunks i + 4 n of token j.
template <class S>
class Tiles {
 public:
  using Kv = typename S::Kv;

  // All threads construct it together and meet before the first tile is used.
  __device__ Tiles(const Reading& reading, std::byte* shared, const RopeTable& rope, int head_dim)
      : reading_(reading), shared_(shared), rope_(rope), head_dim_(head_dim) {
    if (!reading.rotate) return;
    for (int i = threadIdx.x; i < kBlockTokens * head_dim / 4; i += S::kThreads) {
      const int token = i / (head_dim / 4);
      const int pair = i % (head_dim / 4) * 2;
      *TokenTurns(token, pair) =
          *reinterpret_cast<const float4*>(rope.offset + token * (head_dim / 2) + pair);
    }
  }

  // Begins to load a tile, one after the other; past the last there is nothing to load.
  __device__ void Request(int32_t tile) {
    constexpr int kAhead = 32 / S::kWarpBlocks;
    const int lane = threadIdx.x % 32;
    if (tile % kAhead == 0) {
      coming_ = reading_.Find<S>(tile + lane / S::kWarpBlocks, Index(lane % S::kWarpBlocks));
    }
    if (tile < reading_.num_tiles) {
#pragma unroll
      for (int i = 0; i < S::kWarpBlocks; ++i) {
        const int from = tile % kAhead * S::kWarpBlocks + i;
        RequestBlock(
            tile, Index(i),
            {__shfl_sync(~0u, coming_.place, from), __shfl_sync(~0u, coming_.position, from)});
      }
    }
    EndCopies();
  }

  // Turns the warp's part of the oldest tile that was requested but not prepared yet.
  __device__ void Prepare(int32_t tile) {
    AwaitCopies<S::kStages - 2>();
    if (tile >= reading_.num_tiles) return;
    const bool turned = reading_.TurnsKeys(tile);
    if (!turned && !Kv::kScaled) return;
#pragma unroll
    for (int i = 0; i < S::kWarpBlocks; ++i) {
      if (turned) CombineTurns(tile, Index(i));
      __syncwarp();
      PrepareBlock(tile, Index(i), turned);
    }
  }

  __device__ uint32_t Keys(int32_t tile) const {
    return SharedAddress(Stage(tile));
  }
  __device__ uint32_t Values(int32_t tile) const {
    return Keys(tile) + S::kKeyBytes;
  }

  // Where a vector of a tile has a chunk of eight dimensions; chunks are moved about so that eight
  // vectors' chunks of the same dimensions lie in different banks.
  __device__ static int ChunkOffset(int vector, int chunk) {
    return vector * S::kVectorBytes + ((chunk ^ (vector & 7)) << 4);
  }

 private:
  __device__ static int Index(int i) {
    return threadIdx.x / 32 + i * S::kWarps;
  }
  __device__ std::byte* Stage(int32_t tile) const {
    return shared_ + tile % S::kStages * S::kStageBytes;
  }
  // Of high, page and offset parts of positions; at first those of its position, then, instead of
  // the first, their product. The scales of a block are behind them.
  __device__ std::byte* BlockTurns(int32_t tile, int index) const {
    return Stage(tile) + 2 * S::kKeyBytes + index * S::kBlockBytes;
  }
  __device__ float4* TokenTurns(int token, int pair) const {
    return reinterpret_cast<float4*>(shared_ + S::kStages * S::kStageBytes +
                                     token * S::kTokenTurnStride + pair * 8);
  }

  __device__ void RequestBlock(int32_t tile, int index, const SeenBlock& block) {
    const int lane = threadIdx.x % 32;
    const int token = lane % 8;
    bool exists = block.place >= 0;
    const std::byte* from = reading_.head;
    if (exists) {
      from += block.place / kPageBlocks * reading_.page_bytes +
              block.place % kPageBlocks * reading_.block_bytes;
    }
    const uint32_t turns = SharedAddress(BlockTurns(tile, index));
    if (block.position >= 0) RequestTurns(turns, block.position);
    if (tile >= reading_.far_tiles) {
      const int key = reading_.FirstKey<S>(tile) + index * kBlockTokens + token;
      exists = exists && key <= reading_.last();
    }
    if (Kv::kScaled && lane < 2 * kBlockTokens) {
      CopyAsync<4>(turns + S::kBlockTurnBytes + lane * 4,
                   from + 2 * kBlockTokens * head_dim_ + lane * 4, exists);
    }
    const std::byte* key = from + token * head_dim_ * Kv::kBytes;
    const uint32_t to = Keys(tile);
#pragma unroll
    for (int i = 0; i < S::kDim / 32; ++i) {
      const int chunk = lane / 8 + 4 * i;
      const uint32_t at = to + ChunkOffset(index * kBlockTokens + token, chunk);
      RequestChunk(at, key, chunk, exists);
      RequestChunk(at + S::kKeyBytes, key + kBlockTokens * head_dim_ * Kv::kBytes, chunk, exists);
    }
  }

  // E4M3's chunks lie in the first half of where bf16's will be.
  __device__ void RequestChunk(uint32_t to, const std::byte* vector, int chunk, bool exists) {
    if constexpr (!S::kPadded) {
      CopyAsync<8 * Kv::kBytes>(to, vector + chunk * 8 * Kv::kBytes, exists);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const PaddedDim<S::kDim> dim(chunk * 8 + half * 4, head_dim_);
        const bool read = exists && dim.exists;
        CopyAsync<4 * Kv::kBytes>(to + half * 4 * Kv::kBytes,
                                  read ? vector + dim.stored * Kv::kBytes : vector, read);
      }
    }
  }

  __device__ void RequestTurns(uint32_t to, int32_t position) {
    const int half_dim = head_dim_ / 2;
    const float2* high = rope_.high + (position >> 16) * half_dim;
    const float2* page = rope_.page + (position >> 6 & 1023) * half_dim;
    const float2* offset = rope_.offset + (position & 63) * half_dim;
    for (int pair = threadIdx.x % 32 * 2; pair < half_dim; pair += 64) {
      CopyAsync<16>(to + pair * 8, high + pair);
      CopyAsync<16>(to + S::kTurnBytes + pair * 8, page + pair);
      CopyAsync<16>(to + 2 * S::kTurnBytes + pair * 8, offset + pair);
    }
  }

  // Every lane combines those that it requested.
  __device__ void CombineTurns(int32_t tile, int index) {
    std::byte* turns = BlockTurns(tile, index);
    for (int pair = threadIdx.x % 32 * 2; pair < head_dim_ / 2; pair += 64) {
      auto* high = reinterpret_cast<float4*>(turns + pair * 8);
      const float4 page = *reinterpret_cast<const float4*>(turns + S::kTurnBytes + pair * 8);
      const float4 offset = *reinterpret_cast<const float4*>(turns + 2 * S::kTurnBytes + pair * 8);
      *high = Combine(*high, Combine(page, offset));
    }
  }

  __device__ void PrepareBlock(int32_t tile, int index, bool turned) {
    const int lane = threadIdx.x % 32;
    const int token = lane % 8;
    const std::byte* turns = BlockTurns(tile, index);
    const auto* scales = reinterpret_cast<const float*>(turns + S::kBlockTurnBytes) + token;
    std::byte* keys = Stage(tile);
#pragma unroll
    for (int i = 0; i < S::kDim / 64; ++i) {
      const int chunk = lane / 8 + 4 * i;
      const int low = ChunkOffset(index * kBlockTokens + token, chunk);
      const int high = ChunkOffset(index * kBlockTokens + token, chunk + S::kDim / 16);
      TurnChunks(keys + low, keys + high, Kv::kScaled ? scales[0] : 1.0f, turned, turns, chunk * 8,
                 token);
      if constexpr (Kv::kScaled) {
        TurnChunks(keys + S::kKeyBytes + low, keys + S::kKeyBytes + high, scales[kBlockTokens],
                   false, turns, chunk * 8, token);
      }
    }
  }

  // Pairs [pair, pair + 8) of a token.
  __device__ void TurnChunks(std::byte* low, std::byte* high, float scale, bool turned,
                             const std::byte* block_turns, int pair, int token) const {
    Words<4> a = Wide(low);
    Words<4> b = Wide(high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float4 turns = {1.0f, 0.0f, 1.0f, 0.0f};
      if (S::kPadded && pair + 2 * i >= head_dim_ / 2) continue;
      if (turned) {
        turns = Combine(*reinterpret_cast<const float4*>(block_turns + (pair + 2 * i) * 8),
                        *TokenTurns(token, pair + 2 * i));
      }
      if constexpr (Kv::kScaled) {
        turns = {turns.x * scale, turns.y * scale, turns.z * scale, turns.w * scale};
      }
      Turn(a.w[i], b.w[i], turns);
    }
    *reinterpret_cast<Words<4>*>(low) = a;
    *reinterpret_cast<Words<4>*>(high) = b;
  }

  __device__ static Words<4> Wide(const std::byte* chunk) {
    return Kv::Widen(*reinterpret_cast<const Chunk<Kv>*>(chunk));
  }

  const Reading& reading_;
  std::byte* shared_;
  const RopeTable& rope_;
  int head_dim_;
  SeenBlock coming_;  // one of the warp's blocks of the next tiles
};

}  // namespace everlong::cuda::prompt
