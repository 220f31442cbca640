// The KV blocks that a decoded token reads of one KV head, in tiles of two, and how workers share
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda::decode {

inline constexpr int kTileBlocks = 2;

// Of SeenBlock::distance and offset: nothing is turned.
inline constexpr int32_t kRaw = -1;

// What a kernel would have to work out by itself.
struct CacheLayer {
  const std::byte* base;
  int64_t page_bytes;
  int64_t block_bytes;
  int32_t group;        // query heads of a KV head
  int32_t group_parts;  // of the heads that a CTA serves
};

inline CacheLayer LayerOf(const AttentionArgs& args, int32_t cta_heads) {
  const KvCache& cache = args.cache;
  return {.base = static_cast<const std::byte*>(cache.base) + args.layer * cache.layer_stride_bytes,
          .page_bytes = cache.PageBytes(),
          .block_bytes = cache.BlockBytes(),
          .group = args.q_heads / cache.kv_heads,
          .group_parts = CeilDiv(args.q_heads / cache.kv_heads, cta_heads)};
}

// A KV block as the query sees it. Keys are turned by their places in a rotary page of 64 positions
// and the query by its distance from that page's start: only differences matter.
struct SeenBlock {
  const std::byte* address = nullptr;
  int32_t tokens = 0;       // the leading ones are seen; 0: there is no such block
  int32_t offset = 0;       // of the first key in its rotary page, or kRaw
  int32_t distance = kRaw;  // by which the query is turned, or kRaw
};

struct Tile {
  SeenBlock blocks[kTileBlocks];
  __device__ bool exists() const { return blocks[0].tokens > 0; }
  __device__ bool full() const {
    return blocks[0].tokens + blocks[1].tokens == kTileBlocks * kBlockTokens;
  }
};

// What a query reads, tiles of the window first. Lies in shared memory, the same for all threads.
struct Reading {
  const std::byte* head;    // of page 0
  const int32_t* pages;     // of the sequence
  const int32_t* selected;  // KV blocks
  int64_t page_bytes;
  int64_t block_bytes;
  int32_t position;       // of the query
  int32_t shift;          // of positions in the window, as the rotary embedding sees them
  int32_t clip_distance;  // kRaw: far keys are turned too
  int32_t num_sinks;      // in blocks, as the following
  int32_t num_far;
  int32_t window_begin;
  int32_t window_end;
  int32_t window_tiles;
  int32_t num_tiles;
  bool rotate;
  bool streaming;

  __device__ bool few() const { return num_far + window_end - window_begin <= kFewBlocks; }
  __device__ SeenBlock Find(int32_t tile, int half) const;

 private:
  __device__ SeenBlock Seen(int32_t block, int32_t tokens, int32_t place) const;
};

__device__ inline Reading ReadingOf(const AttentionArgs& args, const CacheLayer& cache,
                                    const Step& step, const QueryBlock& block, int kv_head) {
  Reading reading;
  reading.page_bytes = cache.page_bytes;
  reading.block_bytes = cache.block_bytes;
  reading.head = cache.base + kv_head * kPageBlocks * cache.block_bytes;
  reading.pages = step.pages + __ldcg(step.page_begin + block.sequence);
  reading.position = static_cast<int32_t>(__ldcg(step.positions + block.first_row));
  reading.num_sinks = block.num_sinks / kBlockTokens;
  reading.num_far = reading.num_sinks;
  if (block.slot >= 0) {
    const int64_t list = args.selection.List(args.layer, block.slot, kv_head, kFinalList);
    reading.selected = args.selection.blocks + list * args.selection.capacity;
    reading.num_far += __ldcg(args.selection.counts + list);
  }
  reading.window_begin = static_cast<int32_t>(block.window_begin / kBlockTokens);
  reading.window_end = reading.position / kBlockTokens + 1;
  const int32_t window_blocks = reading.window_end - reading.window_begin;
  reading.window_tiles = CeilDiv(window_blocks, kTileBlocks);
  reading.num_tiles = reading.window_tiles + CeilDiv(reading.num_far, kTileBlocks);
  reading.rotate = args.rotate;
  reading.streaming = block.positions == Positions::kStreaming;
  reading.shift = reading.streaming ? (reading.num_far - reading.window_begin) * kBlockTokens : 0;
  reading.clip_distance = block.positions == Positions::kClipped ? block.clip_distance : kRaw;
  return reading;
}

__device__ inline SeenBlock Reading::Seen(int32_t block, int32_t tokens, int32_t place) const {
  const int64_t page = __ldcg(pages + block / kPageBlocks);
  SeenBlock seen = {head + page * page_bytes + block % kPageBlocks * block_bytes, tokens, kRaw,
                    kRaw};
  if (!rotate) return seen;
  if (place == kRaw) {
    seen.distance = clip_distance;
  } else {
    seen.offset = place % kPageTokens;
    seen.distance = position + shift - (place - seen.offset);
  }
  return seen;
}

__device__ inline SeenBlock Reading::Find(int32_t tile, int half) const {
  if (tile < window_tiles) {
    const int32_t block = window_begin + tile * kTileBlocks + half;
    if (block >= window_end) return {};
    const int32_t first = block * kBlockTokens;
    return Seen(block, min(kBlockTokens, position + 1 - first), first + shift);
  }
  const int32_t i = (tile - window_tiles) * kTileBlocks + half;
  if (i >= num_far) return {};
  const int32_t block = i < num_sinks ? i : __ldcg(selected + i - num_sinks);
  const int32_t place = clip_distance != kRaw ? kRaw : (streaming ? i : block) * kBlockTokens;
  return Seen(block, kBlockTokens, place);
}

// Tiles of a warp: `stride` apart from `first` on, before `end`. Every lane looks up one block of
// the next 16, so that the latency of doing so is seldom met.
class Tiles {
 public:
  __device__ Tiles(const Reading& reading, int first, int stride, int end)
      : reading_(reading), first_(first), stride_(stride), end_(end) {}

  // The next one, which all lanes get; none at the end.
  __device__ Tile Next() {
    const int first_lane = next_ * kTileBlocks % 32;
    if (first_lane == 0) LookUp();
    ++next_;
    Tile tile;
#pragma unroll
    for (int half = 0; half < kTileBlocks; ++half) {
      const int lane = first_lane + half;
      const auto address =
          __shfl_sync(~0u, reinterpret_cast<unsigned long long>(mine_.address), lane);
      tile.blocks[half] = {
          reinterpret_cast<const std::byte*>(address), __shfl_sync(~0u, mine_.tokens, lane),
          __shfl_sync(~0u, mine_.offset, lane), __shfl_sync(~0u, mine_.distance, lane)};
    }
    return tile;
  }

 private:
  __device__ void LookUp() {
    const int lane = threadIdx.x % 32;
    const int tile = first_ + (next_ + lane / kTileBlocks) * stride_;
    mine_ = tile < end_ ? reading_.Find(tile, lane % kTileBlocks) : SeenBlock();
  }

  const Reading& reading_;
  int first_;
  int stride_;
  int end_;
  int next_ = 0;  // of them
  SeenBlock mine_;
};

}  // namespace everlong::cuda::decode
