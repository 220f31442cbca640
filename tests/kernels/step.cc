#include "tests/kernels/step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace everlong {

std::vector<SequenceShape> MixedShapes() {
  return {{0, 1}, {5, 1},  {64, 1}, {127, 1}, {0, 9},   {7, 2},
          {8, 8}, {20, 1}, {63, 2}, {0, 70},  {130, 17}};
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
          .num_decode = num_decode,
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
  slice.num_decode = row < num_decode ? 1 : 0;
  return slice;
}

int32_t Step::num_decodable() const {
  int32_t count = 0;
  while (count < num_sequences() && query_begin[count + 1] == count + 1) ++count;
  return count;
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

namespace {

// Bytes of a block's scales.
int64_t ScaleBytes(DType type) {
  return type == DType::kF8 ? 16 * 4 : 0;
}

}  // namespace

// Bits that are all set are NaN in every type.
HostCache::HostCache(DType type, int32_t kv_heads, int32_t head_dim, int64_t num_pages,
                     int64_t num_layers) {
  shape = {.kv_heads = kv_heads, .head_dim = head_dim, .type = type};
  const int64_t block_bytes = int64_t{16} * head_dim * ByteSize(type) + ScaleBytes(type);
  shape.layer_stride_bytes = num_pages * kv_heads * 8 * block_bytes;
  bytes.assign(num_layers * shape.layer_stride_bytes, std::byte{0xFF});
}

int64_t HostCache::KeyByte(int64_t layer, int64_t page, int64_t head, int64_t slot) const {
  const int64_t block = (page * shape.kv_heads + head) * 8 + slot / 8;
  const int64_t rows = block * 16 + slot % 8;
  return layer * shape.layer_stride_bytes + block * ScaleBytes(shape.type) +
         rows * shape.head_dim * ByteSize(shape.type);
}

int64_t HostCache::ValueOffset() const {
  return int64_t{8} * shape.head_dim * ByteSize(shape.type);
}

int64_t HostCache::ScaleByte(int64_t byte) const {
  const int64_t elements = int64_t{16} * shape.head_dim;
  const int64_t in_block = byte % (elements + ScaleBytes(shape.type));
  return byte - in_block + elements + in_block / shape.head_dim * 4;
}

Values HostCache::At(int64_t byte) const {
  Values values = Decode(shape.type, bytes.data() + byte, shape.head_dim);
  if (shape.type != DType::kF8) return values;
  const float scale = Decode(DType::kF32, bytes.data() + ScaleByte(byte), 1)[0];
  for (float& value : values) value *= scale;
  return values;
}

void HostCache::Set(int64_t byte, const Values& values, float scale) {
  const auto write = [&](int64_t to, DType type, const Values& stored) {
    const std::vector<std::byte> encoded = Encode(type, stored);
    std::copy(encoded.begin(), encoded.end(), bytes.begin() + to);
  };
  if (shape.type != DType::kF8) return write(byte, shape.type, values);
  float largest = 0.0f;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  if (scale == 0.0f) scale = largest / 448.0f;
  Values codes = values;
  for (float& code : codes) code /= scale > 0.0f ? scale : 1.0f;
  write(byte, DType::kF8, codes);
  write(ScaleByte(byte), DType::kF32, {scale});
}

void HostCache::CopyPage(const HostCache& from_cache, int64_t layer, int64_t from, int64_t to) {
  std::copy_n(from_cache.bytes.begin() + from_cache.KeyByte(layer, from, 0, 0), shape.PageBytes(),
              bytes.begin() + KeyByte(layer, to, 0, 0));
}

void HostCache::ForgetPage(int64_t layer, int64_t page) {
  std::fill_n(bytes.begin() + KeyByte(layer, page, 0, 0), shape.PageBytes(), std::byte{0xFF});
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
