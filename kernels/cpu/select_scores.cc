#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_scores.cc"
#define HWY_WANT_AVX3_DL  // byte products
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/select_scores.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// --- stored keys ---

template <class Format>
HWY_INLINE void LoadRow(const std::byte* from, int64_t size, float* out) {
  const auto* elements = reinterpret_cast<const typename Format::Element*>(from);
  for (int64_t i = 0; i < size; i += kLanes)
    hn::StoreU(Format::Load(elements + i), F32Tag(), out + i);
}

// head_dim is a multiple of 2 * kRowUnit here; LoadKey in the common part sees to others.
void LoadKeyVectors(const std::byte* from, DType type, int64_t head_dim, const float* cos,
                    const float* sin, float* out) {
  switch (type) {
    case DType::kF32:
      LoadRow<F32>(from, head_dim, out);
      break;
    case DType::kF16:
      LoadRow<F16>(from, head_dim, out);
      break;
    case DType::kBF16:
      LoadRow<BF16>(from, head_dim, out);
      break;
    default:
      EVERLONG_CHECK(!IsQuantized(type));
  }
  if (cos == nullptr) return;
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec a = F32::Load(out + i);
    const Vec b = F32::Load(out + half + i);
    const Vec c = F32::Load(cos + i);
    const Vec s = F32::Load(sin + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), F32Tag(), out + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), F32Tag(), out + half + i);
  }
}

// Scores of kKeys keys over kVectors vectors of rows from `column` on, folded into `best`.
template <int kKeys, int kVectors>
HWY_INLINE void ScoreTile(const RowColumns& rows, int64_t column, const float* keys, float* best) {
  Vec sums[kKeys][kVectors];
  for (auto& key : sums) {
    for (Vec& sum : key) sum = hn::Zero(F32Tag());
  }
  for (int64_t d = 0; d < rows.head_dim; ++d) {
    const float* q = rows.data + d * rows.width + column;
    Vec columns[kVectors];
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) columns[v] = F32::Load(q + v * kLanes);
    HWY_UNROLL(8)
    for (int k = 0; k < kKeys; ++k) {
      const Vec key = hn::Set(F32Tag(), keys[k * rows.head_dim + d]);
      HWY_UNROLL(8)
      for (int v = 0; v < kVectors; ++v) sums[k][v] = hn::MulAdd(key, columns[v], sums[k][v]);
    }
  }
  for (int k = 0; k < kKeys; ++k) {
    Vec max = sums[k][0];
    for (int v = 1; v < kVectors; ++v) max = hn::Max(max, sums[k][v]);
    best[k] = std::max(best[k], Max(max));
  }
}

// Of 32 registers 16 are sums, of 16 registers 8.
inline constexpr int kSumRegisters = HWY_TARGET <= HWY_AVX3 ? 16 : 8;

template <int kVectors>
HWY_INLINE void ScoreColumns(const RowColumns& rows, int64_t column, const float* keys,
                             int64_t num_keys, float* scores) {
  constexpr int kKeys = kSumRegisters / kVectors;
  int64_t i = 0;
  for (; i + kKeys <= num_keys; i += kKeys) {
    ScoreTile<kKeys, kVectors>(rows, column, keys + i * rows.head_dim, scores + i);
  }
  for (; i < num_keys; ++i) {
    ScoreTile<1, kVectors>(rows, column, keys + i * rows.head_dim, scores + i);
  }
}

void ScoreKeyVectors(const RowColumns& rows, const float* keys, int64_t num_keys, float* scores) {
  std::fill_n(scores, num_keys, -std::numeric_limits<float>::infinity());
  int64_t column = 0;
  for (; column + 4 * kLanes <= rows.width; column += 4 * kLanes) {
    ScoreColumns<4>(rows, column, keys, num_keys, scores);
  }
  for (; column < rows.width; column += kLanes) {
    ScoreColumns<1>(rows, column, keys, num_keys, scores);
  }
}

// --- the index ---

// One byte for each code, in the order of their numbers: [head_dim / 4][256].
template <int kBits>
void UnpackCodes(const uint8_t* packed, int64_t num_groups, uint8_t* codes) {
  constexpr int64_t kGroupBytes = 32 * kBits;
  constexpr int64_t kVectorBytes = HWY_MIN(4 * kLanes, kGroupBytes);
  const hn::CappedTag<uint8_t, kVectorBytes> u8;
  const hn::Repartition<uint16_t, decltype(u8)> u16;
  const auto mask = hn::Set(u8, static_cast<uint8_t>((1 << kBits) - 1));
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t at = 0; at < kGroupBytes; at += kVectorBytes) {
      auto fields = hn::BitCast(u16, hn::LoadU(u8, packed + g * kGroupBytes + at));
      for (int f = 0; f < 8 / kBits; ++f) {
        hn::StoreU(hn::And(hn::BitCast(u8, fields), mask), u8,
                   codes + g * 256 + f * kGroupBytes + at);
        fields = hn::ShiftRight<kBits>(fields);
      }
    }
  }
}

float Dot(const float* a, const float* b, int64_t size) {
  Vec sum = hn::Zero(F32Tag());
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sum = hn::MulAdd(F32::Load(a + i), F32::Load(b + i), sum);
  float total = Sum(sum);
  for (; i < size; ++i) total += a[i] * b[i];
  return total;
}

inline constexpr int64_t kPageVectors = kPageTokens / kLanes;
// Vectors of sums that are held at once.
inline constexpr int64_t kScanVectors = HWY_MIN(4, kPageVectors);

// Raises best[token] to the row's scores for kScanVectors vectors of tokens.
HWY_INLINE void ScanRow(const ScanRows& rows, int64_t row, float mean, float middle,
                        const uint8_t* codes, const float* scales, float* best) {
  const F32Tag f32;
  const I32Tag i32;
  const int8_t* query = rows.bytes + row * rows.head_dim;
  IntVec sums[kScanVectors];
  for (IntVec& sum : sums) sum = hn::Zero(i32);
  for (int64_t g = 0; g < rows.head_dim / 4; ++g) {
    int32_t quad;
    std::memcpy(&quad, query + 4 * g, sizeof(quad));
    const IntVec broadcast = hn::Set(i32, quad);
    HWY_UNROLL(4)
    for (int64_t v = 0; v < kScanVectors; ++v) {
      const ByteVec c = hn::LoadU(U8Tag(), codes + g * 256 + v * 4 * kLanes);
      sums[v] = AddByteProducts(c, broadcast, sums[v]);
    }
  }
  const Vec centre = hn::Set(f32, middle * static_cast<float>(rows.totals[row]));
  for (int64_t v = 0; v < kScanVectors; ++v) {
    const Vec centred = hn::Sub(hn::ConvertTo(f32, sums[v]), centre);
    const Vec scale = hn::Mul(F32::Load(scales + v * kLanes), hn::Set(f32, rows.scales[row]));
    const Vec score = hn::MulAdd(centred, scale, hn::Set(f32, mean));
    float* at = best + v * kLanes;
    hn::StoreU(hn::Max(score, F32::Load(at)), f32, at);
  }
}

// Not inlined: clang 14 takes gigabytes where it knows the size.
HWY_NOINLINE void WidenHalves(const std::byte* from, int64_t size, float* out) {
  const auto* halves = reinterpret_cast<const uint16_t*>(from);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) hn::StoreU(F16::Load(halves + i), F32Tag(), out + i);
  for (; i < size; ++i) out[i] = F16ToF32(halves[i]);
}

void ScanPageVectors(const ScanRows& rows, const std::byte* head, int32_t bits, uint8_t* codes,
                     float* scores) {
  const int64_t num_groups = rows.head_dim / 4;
  const auto* packed = reinterpret_cast<const uint8_t*>(head);
  if (bits == 4) UnpackCodes<4>(packed, num_groups, codes);
  if (bits == 2) UnpackCodes<2>(packed, num_groups, codes);
  if (bits == 1) UnpackCodes<1>(packed, num_groups, codes);
  const std::byte* scales_at = head + num_groups * 32 * bits;
  float scales[kPageTokens];
  float mean[kMaxScanDim];
  float best[kPageTokens];
  WidenHalves(scales_at, kPageTokens, scales);
  WidenHalves(scales_at + 2 * kPageTokens, rows.head_dim, mean);
  std::fill_n(best, kPageTokens, -std::numeric_limits<float>::infinity());
  const float middle = static_cast<float>((1 << bits) - 1) / 2;
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const float mean_score = Dot(rows.rows + row * rows.head_dim, mean, rows.head_dim);
    for (int64_t t = 0; t < kPageTokens; t += kScanVectors * kLanes) {
      ScanRow(rows, row, mean_score, middle, codes + 4 * t, scales + t, best + t);
    }
  }
  for (int64_t b = 0; b < kPageBlocks; ++b) {
    const float* tokens = best + b * kBlockTokens;
    scores[b] = std::max(scores[b], *std::max_element(tokens, tokens + kBlockTokens));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/reference/step.h"

namespace everlong::cpu {

HWY_EXPORT(ScoreKeyVectors);
HWY_EXPORT(LoadKeyVectors);
HWY_EXPORT(ScanPageVectors);

void ScoreKeys(RowColumns rows, const float* keys, int64_t num_keys, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreKeyVectors)(rows, keys, num_keys, scores);
}

void LoadKey(const std::byte* from, DType type, int64_t head_dim, const float* cos,
             const float* sin, float* out) {
  if (head_dim % (2 * kRowUnit) == 0) {
    return HWY_DYNAMIC_DISPATCH(LoadKeyVectors)(from, type, head_dim, cos, sin, out);
  }
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = reference::ReadElement(from + i * ByteSize(type), type);
    const float b = reference::ReadElement(from + (half + i) * ByteSize(type), type);
    out[i] = cos == nullptr ? a : a * cos[i] - b * sin[i];
    out[half + i] = cos == nullptr ? b : b * cos[i] + a * sin[i];
  }
}

void ScanPage(const ScanRows& rows, const std::byte* head, int32_t bits, uint8_t* codes,
              float* scores) {
  EVERLONG_CHECK(rows.head_dim % 4 == 0 && rows.head_dim <= kMaxScanDim);
  HWY_DYNAMIC_DISPATCH(ScanPageVectors)(rows, head, bits, codes, scores);
}

}  // namespace everlong::cpu
#endif
