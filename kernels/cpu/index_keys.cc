#include "kernels/cpu/index_keys.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/select_scores.h"
#include "kernels/dtype.h"
#include "kernels/kv_address.h"
namespace everlong::cpu {
namespace {

// Rounds values to f16 where they will be kept, and gives back what is kept.
float KeepAsF16(float value, std::byte* to) {
  const uint16_t bits = F32ToF16(value);
  std::memcpy(to, &bits, sizeof(bits));
  return F16ToF32(bits);
}

// As in reference/index.cc.
float LevelDistance(const float* x, int64_t size, int32_t bits) {
  float largest = 0.0f;
  double absolute = 0.0;
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    largest = std::max(largest, std::abs(x[i]));
    absolute += std::abs(x[i]);
    squares += double{x[i]} * x[i];
  }
  const auto n = static_cast<double>(size);
  if (bits == 4) return largest / 7.5f;
  return static_cast<float>(bits == 2 ? std::sqrt(squares / n) : 2.0 * absolute / n);
}

// keys: [kPageTokens][head_dim]; `room` is for two more.
void WriteRanges(const KeyIndex& index, const float* keys, float* room, const RangeView& view) {
  const int64_t dim = index.head_dim;
  float* lows = std::copy_n(keys, dim, room) - dim;
  float* highs = std::copy_n(keys, dim, room + dim) - dim;
  for (int64_t t = 1; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < dim; ++i) {
      lows[i] = std::min(lows[i], keys[t * dim + i]);
      highs[i] = std::max(highs[i], keys[t * dim + i]);
    }
  }
  float largest = 0.0f;
  for (int64_t i = 0; i < dim; ++i) {
    largest = std::max({largest, std::abs(lows[i]), std::abs(highs[i])});
  }
  int exponent = kLeastRangeExponent;
  if (largest > 0.0f) exponent = std::max(exponent, std::ilogb(largest) - 5);
  if (std::ldexp(static_cast<float>(kRangeZero - 1), exponent) < largest) ++exponent;
  *view.exponent = static_cast<std::byte>(exponent);
  const float unit = std::ldexp(1.0f, -exponent);
  for (int64_t i = 0; i < dim; ++i) {
    view.lows[i] = static_cast<std::byte>(kRangeZero + std::lrint(lows[i] * unit));
    view.highs[i] = static_cast<std::byte>(kRangeZero + std::lrint(highs[i] * unit));
  }
}

// `keys` is room for the page's and two more.
void EncodeHead(const IndexKeysArgs& args, int64_t page, int64_t head, float* keys) {
  const KvCache& cache = args.cache;
  const KeyIndex& index = args.index;
  const int64_t dim = cache.head_dim;
  for (int64_t t = 0; t < kPageTokens; ++t) {
    LoadKey(KeyAddress(cache, args.layer, page, head, t), cache.type, dim, nullptr, nullptr,
            keys + t * dim);
  }
  WriteRanges(index, keys, keys + kPageTokens * dim, RangesAt(index, args.layer, page, head));
  const IndexHeadView view = IndexHeadAt(index, args.layer, page, head);
  std::memset(view.codes, 0, index.CodeBytes());
  for (int64_t i = 0; i < dim; ++i) {
    double sum = 0.0;
    for (int64_t t = 0; t < kPageTokens; ++t) sum += keys[t * dim + i];
    const float mean = KeepAsF16(static_cast<float>(sum / kPageTokens), view.mean + 2 * i);
    for (int64_t t = 0; t < kPageTokens; ++t) keys[t * dim + i] -= mean;
  }
  const float top = static_cast<float>((1 << index.bits) - 1);
  const int64_t group_bytes = index.GroupBytes();
  auto* codes = reinterpret_cast<uint8_t*>(view.codes);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    const float* key = keys + t * dim;
    const float distance = KeepAsF16(LevelDistance(key, dim, index.bits), view.scales + 2 * t);
    if (distance == 0.0f) continue;
    for (int64_t i = 0; i < dim; ++i) {
      const float nearest = std::nearbyint(key[i] / distance + top / 2);
      const float level = std::min(std::max(0.0f, nearest), top);  // 0 of a NaN
      const int64_t code = 4 * t + i % 4;
      codes[i / 4 * group_bytes + code % group_bytes] |=
          static_cast<uint8_t>(static_cast<unsigned>(level) << (code / group_bytes * index.bits));
    }
  }
}

}  // namespace

void IndexKeys::Run(const IndexKeysArgs& args, const Step& step, ThreadPool& pool) {
  const int64_t heads = args.index.kv_heads;
  const int64_t page_floats = (kPageTokens + 2) * int64_t{args.cache.head_dim};
  keys_.Reserve(page_floats * pool.num_threads());
  for (const StepSequence& sequence : step.sequences()) {
    const int64_t first = sequence.context / kPageTokens;
    const int64_t end = (sequence.context + sequence.num_tokens) / kPageTokens;
    if (end == first) continue;
    pool.Run((end - first) * heads, [&](int64_t task, int thread) {
      EncodeHead(args, sequence.pages[first + task / heads], task % heads,
                 keys_.data() + thread * page_floats);
    });
  }
}

}  // namespace everlong::cpu
