// Where keys, values and the index of keys are, as KvCache and KeyIndex lay them out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace everlong {

// Where a page holds one head's key of one slot in [0, kPageTokens); its value is
// kBlockTokens * head_dim elements further on. The blocks of a head are back to back.
inline std::byte* KeyAddress(const KvCache& cache, int64_t layer, int64_t page, int64_t head,
                             int64_t slot) {
  const int64_t block = head * kPageBlocks + slot / kBlockTokens;
  return static_cast<std::byte*>(cache.base) + layer * cache.layer_stride_bytes +
         page * cache.PageBytes() + block * cache.BlockBytes() +
         slot % kBlockTokens * cache.head_dim * ByteSize(cache.type);
}

// One head of an index page.
struct IndexHeadView {
  std::byte* codes;   // [head_dim / 4][GroupBytes()]
  std::byte* scales;  // f16 [kPageTokens]
  std::byte* mean;    // f16 [head_dim]
};

inline IndexHeadView IndexHeadAt(const KeyIndex& index, int64_t layer, int64_t page, int64_t head) {
  auto* codes = static_cast<std::byte*>(index.base) + layer * index.layer_stride_bytes +
                page * index.PageBytes() + head * index.HeadBytes();
  std::byte* scales = codes + index.CodeBytes();
  return {.codes = codes, .scales = scales, .mean = scales + int64_t{2} * kPageTokens};
}

// The ranges of one head of a page.
struct RangeView {
  std::byte* lows;      // codes [head_dim]
  std::byte* highs;     // codes [head_dim]
  std::byte* exponent;  // int8
};

inline RangeView RangesAt(const KeyIndex& index, int64_t layer, int64_t page, int64_t head) {
  auto* of_page = static_cast<std::byte*>(index.ranges) + layer * index.range_stride_bytes +
                  page * index.RangePageBytes();
  const int64_t dim = index.head_dim;
  std::byte* lows = of_page + 2 * dim * head;
  return {.lows = lows, .highs = lows + dim, .exponent = of_page + 2 * dim * index.kv_heads + head};
}

// The pages with candidates of a query block, of its sequence's.
struct PageSpan {
  int64_t begin;
  int64_t end;
};

inline PageSpan CandidatePages(const QueryBlock& block) {
  return {.begin = block.num_sinks / kPageTokens,
          .end = (block.window_begin + kPageTokens - 1) / kPageTokens};
}

}  // namespace everlong
