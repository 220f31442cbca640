// Ragged batches and the contents of their KV caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/args.h"
#include "tests/kernels/numerics.h"

namespace everlong {

struct SequenceShape {
  int64_t context = 0;  // tokens stored before the step
  int64_t queries = 0;
};

// Decode first, then prefill from nothing and from within, with ends on either side of blocks and
// pages.
std::vector<SequenceShape> MixedShapes();

// Random tokens; page ids are a random order of [0, num_pages), so every page is in use.
struct Step {
  Step(std::mt19937& random, const std::vector<SequenceShape>& shapes, int32_t vocab = 1000);

  // Points into this object. One plan, of `blocks`.
  StepLayout Layout() const;
  // `count` rows of a query block, from its row `first` on, as a step of their own. Decoded rows
  // stay so.
  Step Slice(const QueryBlock& block, int32_t first, int32_t count) const;
  int32_t num_sequences() const { return static_cast<int32_t>(context_begin.size()); }
  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  // How many of the first sequences have one token, which may be decoded.
  int32_t num_decodable() const;
  int32_t num_pages() const { return static_cast<int32_t>(pages.size()); }
  int32_t page(int32_t sequence, int64_t position) const;
  int64_t position(int32_t sequence, int32_t row) const;
  int64_t length(int32_t sequence) const;  // with the tokens of the step

  std::vector<int32_t> tokens;
  std::vector<int32_t> query_begin;
  std::vector<int64_t> context_begin;
  std::vector<int32_t> pages;
  std::vector<int64_t> page_begin;
  std::vector<int32_t> output_rows;
  std::vector<QueryBlock> blocks;  // at first one dense block per sequence
  int32_t num_decode = 0;

 private:
  Step() = default;

  mutable AttentionPlan plan_;
};

// A cache in host memory, addressed as args.h lays it out.
struct HostCache {
  // Every element NaN: what nothing may read.
  HostCache(DType type, int32_t kv_heads, int32_t head_dim, int64_t num_pages, int64_t num_layers);

  int64_t num_pages() const { return shape.layer_stride_bytes / shape.PageBytes(); }
  // Number of the first byte of a key; offset of its value from it.
  int64_t KeyByte(int64_t layer, int64_t page, int64_t head, int64_t slot) const;
  int64_t ValueOffset() const;
  // Of the scale of a key or value in a cache of kF8.
  int64_t ScaleByte(int64_t byte) const;

  // A key or value. Codes of kF8 are stored in multiples of `scale`, or where it is 0 of the
  // largest magnitude over 448.
  Values At(int64_t byte) const;
  void Set(int64_t byte, const Values& values, float scale = 0.0f);

  // Of one layer. Forgotten pages are NaN.
  void CopyPage(const HostCache& from_cache, int64_t layer, int64_t from, int64_t to);
  void ForgetPage(int64_t layer, int64_t page);

  KvCache shape;  // base is null
  std::vector<std::byte> bytes;
};

// Fills layer `layer` with random keys and values up to the last token of every sequence.
void FillCache(HostCache& cache, const Step& step, int64_t layer, std::mt19937& random);

}  // namespace everlong
