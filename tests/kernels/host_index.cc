#include "tests/kernels/host_index.h"

#include <algorithm>
#include <cmath>

namespace everlong {

HostIndex::HostIndex(int32_t bits, int32_t kv_heads, int32_t head_dim, int64_t num_pages,
                     int32_t num_layers) {
  shape = {.kv_heads = kv_heads, .head_dim = head_dim, .bits = bits};
  shape.layer_stride_bytes = num_pages * shape.PageBytes();
  bytes.resize(num_layers * shape.layer_stride_bytes);
  shape.range_stride_bytes = num_pages * shape.RangePageBytes();
  range_bytes.resize(num_layers * shape.range_stride_bytes);
}

KeyIndex HostIndex::Place(Device& device) const {
  KeyIndex placed = shape;
  placed.base = device.Place(bytes);
  placed.ranges = device.Place(range_bytes);
  return placed;
}

void HostIndex::Read(Device& device, const KeyIndex& from) {
  bytes = device.Read(from.base, static_cast<int64_t>(bytes.size()));
  range_bytes = device.Read(from.ranges, static_cast<int64_t>(range_bytes.size()));
}

HostIndex HostIndex::Of(const HostCache& cache, const Step& step, int32_t bits, int32_t num_layers,
                        int32_t layer) {
  Device reference(MakeReferenceKernels());
  Step all = step;
  all.query_begin = {0};
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    all.context_begin[s] = 0;
    all.query_begin.push_back(all.query_begin.back() + static_cast<int32_t>(step.length(s)));
  }
  all.tokens.resize(all.query_begin.back());
  all.num_decode = 0;
  HostIndex index(bits, cache.shape.kv_heads, cache.shape.head_dim, cache.num_pages(), num_layers);
  IndexKeysArgs args = {.cache = cache.shape, .index = index.Place(reference), .layer = layer};
  args.cache.base = reference.Place(cache.bytes);
  reference->BeginStep(all.Layout());
  reference->IndexKeys(args);
  index.Read(reference, args.index);
  return index;
}

int64_t HostIndex::PageByte(int64_t layer, int64_t page) const {
  return layer * shape.layer_stride_bytes + page * shape.PageBytes();
}

int64_t HostIndex::RangeByte(int64_t layer, int64_t page) const {
  return layer * shape.range_stride_bytes + page * shape.RangePageBytes();
}

HostIndex::Ranges HostIndex::RangesOf(int64_t layer, int64_t page, int64_t head) const {
  const std::byte* of_page = range_bytes.data() + RangeByte(layer, page);
  const int64_t dim = shape.head_dim;
  const auto exponent = static_cast<int8_t>(of_page[2 * dim * shape.kv_heads + head]);
  Ranges ranges = {.unit = std::ldexp(1.0, exponent)};
  for (int64_t i = 0; i < 2 * dim; ++i) {
    const int code = static_cast<int>(of_page[2 * dim * head + i]);
    (i < dim ? ranges.lows : ranges.highs).push_back((code - 64) * ranges.unit);
  }
  return ranges;
}

const std::byte* HostIndex::Head(int64_t layer, int64_t page, int64_t head) const {
  const int64_t head_bytes =
      int64_t{64} * shape.head_dim * shape.bits / 8 + 2 * 64 + int64_t{2} * shape.head_dim;
  return bytes.data() + PageByte(layer, page) + head * head_bytes;
}

std::vector<int32_t> HostIndex::Codes(int64_t layer, int64_t page, int64_t head,
                                      int64_t slot) const {
  const int64_t group_bytes = int64_t{32} * shape.bits;
  std::vector<int32_t> codes(shape.head_dim);
  for (int32_t i = 0; i < shape.head_dim; ++i) {
    const int64_t number = 4 * slot + i % 4;
    const int64_t byte = i / 4 * group_bytes + number % group_bytes;
    const int64_t shift = number / group_bytes * shape.bits;
    codes[i] =
        static_cast<int32_t>(Head(layer, page, head)[byte]) >> shift & ((1 << shape.bits) - 1);
  }
  return codes;
}

float HostIndex::Scale(int64_t layer, int64_t page, int64_t head, int64_t slot) const {
  const int64_t code_bytes = int64_t{64} * shape.head_dim * shape.bits / 8;
  return Decode(DType::kF16, Head(layer, page, head) + code_bytes + 2 * slot, 1)[0];
}

Values HostIndex::Mean(int64_t layer, int64_t page, int64_t head) const {
  const int64_t code_bytes = int64_t{64} * shape.head_dim * shape.bits / 8;
  return Decode(DType::kF16, Head(layer, page, head) + code_bytes + 2 * 64, shape.head_dim);
}

std::vector<double> HostIndex::Key(int64_t layer, int64_t page, int64_t head, int64_t slot) const {
  const Values mean = Mean(layer, page, head);
  const std::vector<int32_t> codes = Codes(layer, page, head, slot);
  std::vector<double> key(mean.begin(), mean.end());
  for (size_t i = 0; i < key.size(); ++i) {
    key[i] += Scale(layer, page, head, slot) * (codes[i] - ((1 << shape.bits) - 1) / 2.0);
  }
  return key;
}

void HostIndex::CopyPage(int64_t layer, int64_t from, int64_t to) {
  std::copy_n(bytes.begin() + PageByte(layer, from), shape.PageBytes(),
              bytes.begin() + PageByte(layer, to));
  std::copy_n(range_bytes.begin() + RangeByte(layer, from), shape.RangePageBytes(),
              range_bytes.begin() + RangeByte(layer, to));
}

void HostIndex::ForgetPage(int64_t layer, int64_t page) {
  std::fill_n(bytes.begin() + PageByte(layer, page), shape.PageBytes(), std::byte{0xFF});
  std::fill_n(range_bytes.begin() + RangeByte(layer, page), shape.RangePageBytes(),
              std::byte{0xFF});
}

void FillPageOnLevels(HostCache& cache, int64_t layer, int64_t page, int32_t bits,
                      std::mt19937& random) {
  for (int32_t head = 0; head < cache.shape.kv_heads; ++head) {
    const auto unit = static_cast<float>(1 << (random() % 3));
    for (int64_t t = 0; t < 64; t += 2) {
      const auto magnitude = static_cast<float>(1 << (random() % 4));
      Values key(cache.shape.head_dim);
      for (float& v : key) {
        const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
        v = sign * (bits == 4 ? static_cast<float>(2 * (random() % 8) + 1) : magnitude);
      }
      if (bits == 4) key[random() % key.size()] = 15.0f;
      for (float& v : key) v *= unit;
      Values opposite = key;
      for (float& v : opposite) v = -v;
      cache.Set(cache.KeyByte(layer, page, head, t), key, 1.0f);
      cache.Set(cache.KeyByte(layer, page, head, t + 1), opposite, 1.0f);
    }
  }
}

}  // namespace everlong
