// What the reference backend's files share: rotation, the cache, and the step that they work on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "kernels/kv_address.h"

namespace everlong::reference {

void Rotate(std::span<double> x, int64_t position, const Rope& rope);

double Dot(std::span<const double> a, std::span<const double> b);

// A key or value in the cache.
struct CachedRow {
  std::byte* elements;  // [head_dim]
  std::byte* scale;     // f32, kF8 only
  DType type;

  void Read(std::span<double> out) const;
  void Write(std::span<const float> values) const;
};

CachedRow KeyRow(const KvCache& cache, int64_t layer, int64_t page, int64_t head, int64_t slot);
CachedRow ValueRow(const KvCache& cache, int64_t layer, int64_t page, int64_t head, int64_t slot);

struct StepSequence {
  int64_t first_token;  // row in the batch
  int64_t num_tokens;
  int64_t context;
  std::vector<int32_t> pages;

  CachedRow Key(const KvCache& cache, int64_t layer, int64_t head, int64_t position) const {
    return KeyRow(cache, layer, pages[position / kPageTokens], head, position % kPageTokens);
  }
  CachedRow Value(const KvCache& cache, int64_t layer, int64_t head, int64_t position) const {
    return ValueRow(cache, layer, pages[position / kPageTokens], head, position % kPageTokens);
  }
  int64_t Position(int64_t row) const { return context + row - first_token; }
};

struct StepPlan {
  std::vector<QueryBlock> blocks;
  std::vector<SelectParams> selects;
};

// A copy of a StepLayout.
struct Step {
  Step() = default;
  explicit Step(const StepLayout& layout);

  std::vector<StepSequence> sequences;
  std::vector<int32_t> tokens;
  std::vector<int32_t> output_rows;
  std::vector<StepPlan> plans;
};

// The blocks that a query block's slot holds for one KV head.
std::span<const int32_t> SelectedBlocks(const Selection& selection, int64_t layer, int64_t slot,
                                        int64_t kv_head);

// The key that the index holds for one token of a page.
void DecodeKey(const KeyIndex& index, const IndexHeadView& view, int64_t slot,
               std::span<double> key);

// Between what the keys of a page's head lie in each dimension.
void ReadRanges(const KeyIndex& index, const RangeView& view, std::span<double> lows,
                std::span<double> highs);

// The operations on one sequence or query block.
void IndexPages(const IndexKeysArgs& args, const StepSequence& sequence);
void SelectBlocks(const SelectArgs& args, const Step& step, const QueryBlock& block,
                  const SelectParams& params);
void Attend(const AttentionArgs& args, const Step& step, const QueryBlock& block, int64_t kv_head);

}  // namespace everlong::reference
