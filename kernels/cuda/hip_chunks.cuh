// The chunks of a stage of probing, and the greedy path down one of them.
#pragma once

#include "kernels/cuda/hip_probing.h"

namespace everlong::cuda::hip {

// By number, in ascending order. Lengths and starts are in KV blocks.
struct Chunks {
  const int32_t* kept;  // of the stage before; null: all candidates
  int32_t begin;
  int32_t pieces;  // that a kept chunk is cut into
  int32_t length;

  __device__ int32_t Start(int number) const {
    if (kept == nullptr) return begin + number * length;
    return kept[number / pieces] + number % pieces * length;
  }
};

__device__ inline Chunks ChunksOf(const Probing& p, const QueryBlock& block,
                                  const SelectParams& params, int stage, int head) {
  const int32_t length = params.stages[stage].chunk_tokens / kBlockTokens;
  if (stage == 0) return {nullptr, block.num_sinks / kBlockTokens, 1, length};
  const int64_t list = p.selection.List(p.layer, block.slot, head, stage - 1);
  return {p.selection.blocks + list * p.selection.capacity, 0,
          params.stages[stage - 1].chunk_tokens / params.stages[stage].chunk_tokens, length};
}

// Without those past the candidates, which are pieces of the last kept chunk.
__device__ inline int32_t NumChunks(const Probing& p, const QueryBlock& block,
                                    const SelectParams& params, int stage, int head) {
  const Chunks chunks = ChunksOf(p, block, params, stage, head);
  const auto end = static_cast<int32_t>(block.window_begin / kBlockTokens);
  if (stage == 0) return CeilDiv(end - chunks.begin, chunks.length);
  int32_t kept = p.selection.counts[p.selection.List(p.layer, block.slot, head, stage - 1)];
  while (kept > 0 && chunks.kept[kept - 1] >= end) --kept;
  if (kept == 0) return 0;
  const int32_t last = CeilDiv(end - chunks.kept[kept - 1], chunks.length);
  return (kept - 1) * chunks.pieces + min(chunks.pieces, last);
}

// The probes of a level, counted from the low end of what a path has left of its chunk.
struct Level {
  int32_t left;
  int32_t right;
  int32_t half;  // by which the low end moves where the right one is better
};

// What probing the chunks of one list goes by.
struct List {
  Chunks chunks;
  int32_t first;       // the list of the first KV head whose queries and keys count
  int32_t head;        // that head
  int32_t num_heads;   // how many do
  int32_t num_passes;  // over the rows of one of them
  int32_t count;       // chunks
  int32_t chunk_tokens;
  int32_t levels;
  bool every_key;
  bool last_probe;    // decides alone
  bool rotates_keys;  // by the chunk's number
  int64_t end;        // of the candidates, a position
  const int32_t* pages;

  // Where every key is scored, a level has two of the chunk's.
  __device__ Level LevelAt(int level) const {
    if (every_key) return {2 * level, 2 * level + 1, 0};
    const int32_t half = chunk_tokens >> (level + 1);
    return {half / 2, half + half / 2, half};
  }
};

__device__ inline List ListOf(const Probing& p, int stage, int list) {
  const QueryBlock& block = p.blocks[list / p.cache.kv_heads];
  const SelectParams& params = p.selects[block.select];
  const HipStage& now = params.stages[stage];
  const int head = list % p.cache.kv_heads;
  const int rows = p.group * RowsPerHead(block, now, p.positions[block.first_row]);
  return {.chunks = ChunksOf(p, block, params, stage, head),
          .first = list,
          .head = head,
          .num_heads = params.all_heads ? p.cache.kv_heads : 1,
          .num_passes = CeilDiv(rows, p.pass_rows()),
          .count = p.counts[list],
          .chunk_tokens = now.chunk_tokens,
          .levels = now.every_key ? now.chunk_tokens / 2 : 31 - __clz(now.chunk_tokens),
          .every_key = now.every_key,
          .last_probe = params.last_probe && !now.every_key,
          .rotates_keys = p.rotate && !now.every_key && params.probes == ProbePositions::kChunk,
          .end = block.window_begin,
          .pages = p.pages + p.page_begin[block.sequence]};
}

// Down a chunk by halves towards the better probe.
struct Path {
  int32_t low;  // of what is left, from the chunk's start; first 0
  float best;   // first -infinity

  // Given the scores of the probes of a level; -infinity: past the candidates.
  __device__ void Descend(const List& list, const Level& level, float left, float right) {
    const float probe = fmaxf(left, right);
    if (right >= left && right != -INFINITY) low += level.half;
    best = list.last_probe ? probe : fmaxf(best, probe);
  }
};

// Where a key is: the bytes from the layer's start to its KV block, whose lowest bits are zero,
// plus its token.
__device__ inline int64_t KeyPlace(const Probing& p, const List& list, int64_t position) {
  const int64_t page = list.pages[position / kPageTokens];
  const int64_t block = list.head * kPageBlocks + position % kPageTokens / kBlockTokens;
  return page * p.cache.PageBytes() + block * p.cache.BlockBytes() + position % kBlockTokens;
}

}  // namespace everlong::cuda::hip
