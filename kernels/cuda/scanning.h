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
inline constexpr int kPartPages = 16;  // of a list that no sieve shortens, by one CTA at once

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
  // Of the pages with candidates the keys (choose_keys.cuh) of their best; 0: not scanned.
  uint32_t* page_keys;  // [lists][page_stride]
  int64_t page_stride;
  int32_t* counts;      // [lists], candidates; 0: no list of the scan's
  int32_t* keeps;       // [lists], of them that are chosen
  int32_t* dilations;   // [lists]
  int32_t* chosen;      // [lists][chosen_stride]
  int32_t* num_chosen;  // [lists]
  int64_t chosen_stride;
  int32_t* first_parts;  // [num_blocks + 1], cumulative: parts of the blocks' lists
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

// How a query block's scan is divided: into the groups of its sieve or into neighbouring pages, and
// by lists, those of a part being neighbours.
struct Division {
  int32_t first_page;
  int32_t num_pages;
  Sieve sieve;
  int32_t num_groups;
  int32_t num_lists;  // for which it is done

  __host__ __device__ int32_t num_parts() const { return num_groups * num_lists; }
};

__host__ __device__ inline Division DivisionOf(const Scanning& s, const QueryBlock& block) {
  const SelectParams& params = s.selects[block.select];
  Division d = {};
  d.first_page = FirstCandidate(block) / kPageBlocks;
  d.num_pages = CeilDiv(EndCandidate(block), kPageBlocks) - d.first_page;
  d.sieve = SieveOf(params, d.num_pages);
  d.num_groups = d.sieve.num_groups > 0 ? d.sieve.num_groups : CeilDiv(d.num_pages, kPartPages);
  d.num_lists = params.all_heads ? 1 : s.cache.kv_heads;
  return d;
}

// Fills rows, bytes, totals and what says how many there are of what.
void PrepareLists(const Scanning& s, const Context& context);

// Fills scores and page_keys from the index; where all heads choose together, the first one's are
// the best of all. `max_candidates` bounds those of a list.
void ScanPages(const Scanning& s, int64_t max_candidates, const Context& context);

// Where blocks are scored again, scores of all others become -infinity, and page_keys follow.
void ScoreWithStoredKeys(const Scanning& s, int64_t max_candidates, const Context& context);

// Whether ChooseBlocks can.
bool CanChooseBlocks(int64_t max_candidates, int32_t max_keep_blocks);

// Chooses by scores and page_keys what becomes the final lists in `selection`, of a block's slot in
// `layer`, and counts what was chosen before. For all blocks whose lists are the scan's to change.
void ChooseBlocks(const Scanning& s, const Selection& selection, int64_t layer,
                  int64_t max_candidates, Context& context);

}  // namespace everlong::cuda::scan
