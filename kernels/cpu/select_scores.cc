#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select_scores.cc"
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/select_scores.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

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
      EVERLONG_CHECK(type < DType::kF8);
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

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace everlong::cpu {

HWY_EXPORT(ScoreKeyVectors);
HWY_EXPORT(LoadKeyVectors);

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
    const float a = ReadElement(from + i * ByteSize(type), type);
    const float b = ReadElement(from + (half + i) * ByteSize(type), type);
    out[i] = cos == nullptr ? a : a * cos[i] - b * sin[i];
    out[half + i] = cos == nullptr ? b : b * cos[i] + a * sin[i];
  }
}

}  // namespace everlong::cpu
#endif
