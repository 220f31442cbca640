// KeyIndex: what its comment in args.h says, one page and KV head at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dtype.h"
#include "kernels/reference/step.h"

namespace everlong::reference {
namespace {

// The distance between levels that loses least of roughly normal values: 16 levels span the
// largest; 4 and 2 follow the deviation (Max: Quantizing for minimum distortion, 1960).
double LevelDistance(std::span<const double> x, int32_t bits) {
  double largest = 0.0;
  double absolute = 0.0;
  double squares = 0.0;
  for (const double v : x) {
    largest = std::max(largest, std::abs(v));
    absolute += std::abs(v);
    squares += v * v;
  }
  const auto n = static_cast<double>(x.size());
  if (bits == 4) return largest / 7.5;
  return bits == 2 ? std::sqrt(squares / n) : 2.0 * absolute / n;
}

// Where a code stands.
struct Field {
  std::byte* byte;
  int shift;
};
Field FieldAt(const KeyIndex& index, std::byte* codes, int64_t token, int64_t dimension) {
  const int64_t code = 4 * token + dimension % 4;
  return {.byte = codes + dimension / 4 * index.GroupBytes() + code % index.GroupBytes(),
          .shift = static_cast<int>(code / index.GroupBytes()) * index.bits};
}

void Encode(const KeyIndex& index, std::span<const double> x, int64_t token,
            const IndexHeadView& view) {
  std::byte* scale = view.scales + 2 * token;
  WriteElement(scale, DType::kF16, static_cast<float>(LevelDistance(x, index.bits)));
  const double distance = ReadElement(scale, DType::kF16);
  const double top = (1 << index.bits) - 1;
  for (int64_t i = 0; i < index.head_dim; ++i) {
    const double level = distance == 0.0 ? 0.0 : x[i] / distance + top / 2;
    const double nearest = std::min(std::max(0.0, std::nearbyint(level)), top);  // 0 of a NaN
    const auto code = static_cast<unsigned>(nearest);
    const Field field = FieldAt(index, view.codes, token, i);
    *field.byte |= static_cast<std::byte>(code << field.shift);
  }
}

// The least at which no code is too far from kRangeZero.
int LeastExponent(double largest) {
  int exponent = kLeastRangeExponent;
  while (std::ldexp(kRangeZero - 1, exponent) < largest) ++exponent;
  return exponent;
}

// keys: [kPageTokens][head_dim].
void WriteRanges(const KeyIndex& index, std::span<const double> keys, const RangeView& view) {
  const auto dim = static_cast<size_t>(index.head_dim);
  std::vector<double> lows(dim);
  std::vector<double> highs(dim);
  double largest = 0.0;
  for (size_t i = 0; i < dim; ++i) {
    lows[i] = keys[i];
    highs[i] = keys[i];
    for (size_t at = i; at < keys.size(); at += dim) {
      lows[i] = std::min(lows[i], keys[at]);
      highs[i] = std::max(highs[i], keys[at]);
    }
    largest = std::max({largest, std::abs(lows[i]), std::abs(highs[i])});
  }
  const int exponent = LeastExponent(largest);
  *view.exponent = static_cast<std::byte>(exponent);
  const auto code = [&](double x) {
    return static_cast<std::byte>(kRangeZero + std::lrint(std::ldexp(x, -exponent)));
  };
  for (size_t i = 0; i < dim; ++i) {
    view.lows[i] = code(lows[i]);
    view.highs[i] = code(highs[i]);
  }
}

void IndexHead(const IndexKeysArgs& args, int64_t page, int64_t head) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  std::vector<double> keys(kPageTokens * dim);
  std::vector<double> mean(dim);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    const std::span<double> key(keys.data() + t * dim, dim);
    KeyRow(cache, args.layer, page, head, t).Read(key);
    for (int64_t i = 0; i < dim; ++i) mean[i] += key[i] / kPageTokens;
  }
  WriteRanges(args.index, keys, RangesAt(args.index, args.layer, page, head));
  const IndexHeadView view = IndexHeadAt(args.index, args.layer, page, head);
  for (int64_t i = 0; i < dim; ++i) {
    WriteElement(view.mean + 2 * i, DType::kF16, static_cast<float>(mean[i]));
    mean[i] = ReadElement(view.mean + 2 * i, DType::kF16);
  }
  std::memset(view.codes, 0, args.index.CodeBytes());
  for (int64_t t = 0; t < kPageTokens; ++t) {
    const std::span<double> key(keys.data() + t * dim, dim);
    for (int64_t i = 0; i < dim; ++i) key[i] -= mean[i];
    Encode(args.index, key, t, view);
  }
}

}  // namespace

void IndexPages(const IndexKeysArgs& args, const StepSequence& sequence) {
  const int64_t end = (sequence.context + sequence.num_tokens) / kPageTokens;
  for (int64_t page = sequence.context / kPageTokens; page < end; ++page) {
    for (int64_t h = 0; h < args.index.kv_heads; ++h) IndexHead(args, sequence.pages[page], h);
  }
}

void DecodeKey(const KeyIndex& index, const IndexHeadView& view, int64_t slot,
               std::span<double> key) {
  const int32_t top = (1 << index.bits) - 1;
  const double distance = ReadElement(view.scales + 2 * slot, DType::kF16);
  for (int64_t i = 0; i < index.head_dim; ++i) {
    const Field field = FieldAt(index, view.codes, slot, i);
    const int code = (static_cast<uint8_t>(*field.byte) >> field.shift) & top;
    key[i] = ReadElement(view.mean + 2 * i, DType::kF16) + distance * (code - top / 2.0);
  }
}

void ReadRanges(const KeyIndex& index, const RangeView& view, std::span<double> lows,
                std::span<double> highs) {
  const auto exponent = static_cast<int8_t>(*view.exponent);
  const auto value = [&](std::byte code) {
    return std::ldexp(static_cast<int>(code) - kRangeZero, exponent);
  };
  for (int64_t i = 0; i < index.head_dim; ++i) {
    lows[i] = value(view.lows[i]);
    highs[i] = value(view.highs[i]);
  }
}

}  // namespace everlong::reference
