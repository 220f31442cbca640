// What the kernels of the scan share: the lists that they choose, one for each query block and KV
// head, and where scratch memory has what belongs to a list.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/select.h"

namespace everlong::cuda::scan {

inline constexpr int kTileRows = 8;   // that one matrix product takes
inline constexpr int kSpanDims = 64;  // that a lane reads a row's bytes of at once
inline constexpr int kMaxHeadDim = 256;

// The lists of some consecutive query blocks: list l is that of block l / kv_heads and KV head l %
// kv_heads. With all_heads the first of a block's lists chooses for all of them.
struct Scanning {
  KvCache cache;   // of the layer
  KeyIndex index;  // of the layer
  RopeTable rope;
  const __nv_bfloat16* q;
  int64_t q_stride;
  int32_t group;  // query heads of a KV head
  bool rotate;

  const QueryBlock* blocks;
  const SelectParams* selects;
  const int32_t* pages;       // of all sequences
  const int64_t* page_begin;  // [num_sequences + 1]
  int32_t num_blocks;

  // A list's query rows as they see every key, the last one repeated up to whole tiles: exact; as
  // scale * byte, with zeros up to whole spans; scales, and sums of bytes.
  float* rows;         // [lists][row_stride][head_dim]
  int8_t* bytes;       // [lists][row_stride][byte_dims()]
  float2* totals;      // [lists][row_stride], scale and sum
  int64_t row_stride;  // a multiple of kTileRows

  float* scores;  // [lists][score_stride], of the candidates
  int64_t score_stride;
  int32_t* counts;      // [lists], candidates; 0: no list of the scan's
  int32_t* keeps;       // [lists], of them that are chosen
  int32_t* dilations;   // [lists]
  int32_t* chosen;      // [lists][chosen_stride]
  int32_t* num_chosen;  // [lists]
  int64_t chosen_stride;
  int32_t* first_pages;  // [num_blocks + 1], cumulative: pages with candidates
  // Those that are scored again with stored keys.
  int32_t* rerank_keeps;  // [lists]
  int32_t* reranked;      // [lists][rerank_stride]
  int32_t* num_reranked;  // [lists]
  int64_t rerank_stride;

  __host__ __device__ int64_t num_lists() const { return int64_t{num_blocks} * cache.kv_heads; }
  __host__ __device__ int byte_dims() const {
    return CeilDiv(cache.head_dim, kSpanDims) * kSpanDims;
  }
  // Whole tiles.
  __host__ __device__ int NumRows(const QueryBlock& block) const {
    return CeilDiv(int64_t{block.num_rows} * group, kTileRows) * kTileRows;
  }
};

// Whether a query block is chosen for by a scan.
__host__ __device__ inline bool Scans(const QueryBlock& block, const SelectParams* selects) {
  return block.first_stage <= 0 && HasToChoose(Selector::kScan, block, selects);
}

// Fills rows, bytes, totals and what says how many there are of what.
void PrepareLists(const Scanning& s, cudaStream_t stream);

// Fills scores from the index, each KV head's by itself. `max_candidates` bounds those of a list.
void ScanPages(const Scanning& s, int64_t max_candidates, const Context& context);

// Where all heads choose together, the first one's scores become the best of all.
void TakeBestOfHeads(const Scanning& s, int64_t max_candidates, cudaStream_t stream);

// Where blocks are scored again, scores of all others become -infinity.
void ScoreWithStoredKeys(const Scanning& s, int64_t max_candidates, const Context& context);

}  // namespace everlong::cuda::scan
