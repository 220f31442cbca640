#include "tests/kernels/step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace everlong {

std::vector<SequenceShape> MixedShapes() {
  return {{0, 1}, {5, 1}, {0, 9}, {7, 2}, {8, 8}, {63, 2}, {64, 1}, {0, 70}, {127, 1}, {130, 17}};
}

Step::Step(std::mt19937& random, const std::vector<SequenceShape>& shapes, int32_t vocab) {
  query_begin = {0};
  page_begin = {0};
  for (const SequenceShape& shape : shapes) {
    blocks.push_back({.sequence = num_sequences(),
                      .first_row = query_begin.back(),
                      .num_rows = static_cast<int32_t>(shape.queries)});
    context_begin.push_back(shape.context);
    query_begin.push_back(query_begin.back() + static_cast<int32_t>(shape.queries));
    page_begin.push_back(page_begin.back() +
                         (shape.context + shape.queries + kPageTokens - 1) / kPageTokens);
  }
  for (int32_t i = 0; i < query_begin.back(); ++i) {
    tokens.push_back(static_cast<int32_t>(random() % vocab));
    if (random() % 3 == 0) output_rows.push_back(i);
  }
  pages.resize(page_begin.back());
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
}

StepLayout Step::Layout() const {
  plan_ = {.num_blocks = static_cast<int32_t>(blocks.size()), .blocks = blocks.data()};
  return {.num_sequences = num_sequences(),
          .num_tokens = num_tokens(),
          .tokens = tokens.data(),
          .query_begin = query_begin.data(),
          .context_begin = context_begin.data(),
          .pages = pages.data(),
          .page_begin = page_begin.data(),
          .num_outputs = static_cast<int32_t>(output_rows.size()),
          .output_rows = output_rows.data(),
          .num_plans = 1,
          .plans = &plan_};
}

Step Step::Slice(const QueryBlock& block, int32_t first, int32_t count) const {
  Step slice;
  const int32_t s = block.sequence;
  const int32_t row = block.first_row + first;
  slice.tokens.assign(tokens.begin() + row, tokens.begin() + row + count);
  slice.query_begin = {0, count};
  slice.context_begin = {position(s, row)};
  slice.pages.assign(pages.begin() + page_begin[s], pages.begin() + page_begin[s + 1]);
  slice.page_begin = {0, slice.num_pages()};
  slice.blocks = {block};
  slice.blocks[0].sequence = 0;
  slice.blocks[0].first_row = 0;
  slice.blocks[0].num_rows = count;
  return slice;
}

int32_t Step::page(int32_t sequence, int64_t position) const {
  return pages[page_begin[sequence] + position / 64];
}

int64_t Step::position(int32_t sequence, int32_t row) const {
  return context_begin[sequence] + row - query_begin[sequence];
}

int64_t Step::length(int32_t sequence) const {
  return position(sequence, query_begin[sequence + 1]);
}

HostCache::HostCache(DType type, int32_t kv_heads, int32_t head_dim, int64_t num_pages,
                     int64_t num_layers) {
  shape = {.kv_heads = kv_heads, .head_dim = head_dim, .type = type};
  const int64_t elements = num_pages * kv_heads * 64 * 2 * head_dim;
  shape.layer_stride_bytes = elements * ByteSize(type);
  bytes = Encode(type, Values(elements * num_layers, std::numeric_limits<float>::quiet_NaN()));
}

int64_t HostCache::KeyByte(int64_t layer, int64_t page, int64_t head, int64_t slot) const {
  const int64_t block = (page * shape.kv_heads + head) * 8 + slot / 8;
  const int64_t element = block * 16 * shape.head_dim + slot % 8 * shape.head_dim;
  return layer * shape.layer_stride_bytes + element * ByteSize(shape.type);
}

int64_t HostCache::ValueOffset() const {
  return int64_t{8} * shape.head_dim * ByteSize(shape.type);
}

Values HostCache::At(int64_t byte) const {
  return Decode(shape.type, bytes.data() + byte, shape.head_dim);
}

void HostCache::Set(int64_t byte, const Values& values) {
  const std::vector<std::byte> encoded = Encode(shape.type, values);
  std::copy(encoded.begin(), encoded.end(), bytes.begin() + byte);
}

void FillCache(HostCache& cache, const Step& step, int64_t layer, std::mt19937& random) {
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    for (int64_t position = 0; position < step.length(s); ++position) {
      for (int32_t head = 0; head < cache.shape.kv_heads; ++head) {
        const int64_t key = cache.KeyByte(layer, step.page(s, position), head, position % 64);
        cache.Set(key, RandomValues(random, cache.shape.head_dim));
        cache.Set(key + cache.ValueOffset(), RandomValues(random, cache.shape.head_dim));
      }
    }
  }
}

}  // namespace everlong
