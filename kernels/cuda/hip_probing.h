// What the kernels of greedy probing share: the lists that they choose, one for each query block
// and KV head, and where scratch memory has what belongs to a list.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/select.h"

namespace everlong::cuda::hip {

inline constexpr int kPooledRows = 4;
// Keys that one matrix product takes, each of a chunk of its own.
inline constexpr int kTileChunks = 8;

// Of 16 query rows of prompts, how many tiles a warp holds in registers, for so many dimensions.
constexpr int RowTiles(int dim) {
  return dim > 128 ? 2 : 4;
}

// The lists of some consecutive query blocks: list l is that of block l / kv_heads and KV head l %
// kv_heads. With all_heads the first of a block's lists chooses for all of them.
//
// Query rows are kept as the left operands of matrix products, 16 rows a tile, in the order in
// which lanes hold them (hip_keys.cuh): uint4 [tiles][dim / 32][2][32 lanes]. A decoded token has
// tiles of 8 rows as left probes see them and the same 8 rows as right probes do, one tile a pass;
// a prompt's block row_tiles tiles as left probes do and as many as right probes do, together one
// pass.
struct Probing {
  KvCache cache;  // of the layer
  Selection selection;
  RopeTable rope;
  const __nv_bfloat16* q;
  int64_t q_stride;
  int64_t layer;
  int32_t group;  // query heads of a KV head
  bool rotate;
  bool decode;
  int32_t dim;        // head_dim, padded to 64, 128 or 256 (PaddedDim)
  int32_t row_tiles;  // RowTiles(dim)

  const QueryBlock* blocks;
  const SelectParams* selects;
  const int64_t* positions;   // [num_tokens]
  const int32_t* pages;       // of all sequences
  const int64_t* page_begin;  // [num_sequences + 1]
  int32_t num_blocks;

  uint4* queries;  // [lists][query_stride]
  int64_t query_stride;
  float* scores;  // [lists][score_stride], of the stage's chunks
  int64_t score_stride;
  int32_t* counts;        // [lists], chunks of the stage; 0: it does not run
  int32_t* keeps;         // [lists], of them that stay
  int32_t* chosen;        // [lists][selection.capacity], their numbers
  int32_t* num_chosen;    // [lists]
  int32_t* final_blocks;  // [lists][selection.capacity]
  int32_t* final_counts;  // [lists], -1: not chosen here

  __host__ __device__ int64_t num_lists() const { return int64_t{num_blocks} * cache.kv_heads; }
  __host__ __device__ int pass_rows() const { return decode ? 8 : 16 * row_tiles; }
  __host__ __device__ int pass_tiles() const { return decode ? 1 : 2 * row_tiles; }
};

// Whether a query block is chosen for by probing.
__host__ __device__ inline bool Probes(const QueryBlock& block, const SelectParams* selects) {
  return HasToChoose(Selector::kHip, block, selects);
}

__host__ __device__ inline bool Runs(const QueryBlock& block, const SelectParams& params,
                                     int stage) {
  return block.first_stage <= stage && stage < params.num_stages;
}

// Rows of one query head, where `position` is the first one's.
__host__ __device__ inline int RowsPerHead(const QueryBlock& block, const HipStage& stage,
                                           int64_t position) {
  if (!stage.pool_rows) return block.num_rows;
  return CeilDiv(position % kPooledRows + block.num_rows, kPooledRows);
}

// Ends stage `stage` - 1 of all lists, then begins stage `stage`: writes the list or the final list
// that has been chosen, and says which chunks are next and how query rows see their keys. `first`:
// it is the first of the launches for these lists.
void ChangeStage(const Probing& p, int stage, bool first, cudaStream_t stream);

// Scores the chunks of a stage, of decoded tokens or of prompts. `max_chunks` bounds the chunks of
// a list. The blocks of prompts are also given as the host knows them.
void ProbeForDecoded(const Probing& p, int stage, int64_t max_chunks, const Context& context);
void ProbeForPrompts(const Probing& p, int stage, int64_t max_chunks, const QueryBlock* blocks,
                     const SelectParams* selects, const Context& context);

}  // namespace everlong::cuda::hip
