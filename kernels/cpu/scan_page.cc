#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/scan_page.cc"
#define HWY_WANT_AVX3_DL  // byte products
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "kernels/args.h"
#include "kernels/cpu/scan_page.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// How a vector of packed bytes, or the two groups of dimensions that share it where a group is
// shorter, becomes codes.
template <int kBits>
struct Packing {
  static constexpr int kFields = 8 / kBits;
  static constexpr int64_t kGroupBytes = 32 * kBits;
  static constexpr int64_t kVectorBytes = 4 * kLanes;
  static constexpr bool kTwoGroups = kVectorBytes > kGroupBytes;
  static constexpr int64_t kVectors = HWY_MAX(kGroupBytes / kVectorBytes, 1);  // of a group
  // Of kLanes tokens each, from one vector.
  static constexpr int kTotals = kTwoGroups ? kFields / 2 : kFields;
  // Rows whose sums are held at once: of 32 registers 16 are sums, of 16 registers 8.
  static constexpr int kRows = HWY_MIN((HWY_TARGET <= HWY_AVX3 ? 16 : 8) / kFields, 4);
};

// Sums of one vector of a page's codes with kRows rows.
template <int kBits, int kRows>
struct TokenSums {
  using P = Packing<kBits>;

  HWY_INLINE TokenSums() {
    for (auto& row : sums) {
      for (IntVec& sum : row) sum = hn::Zero(I32Tag());
    }
  }

  HWY_INLINE void Add(const uint8_t* packed, const IntVec* quads) {
    const hn::Repartition<uint16_t, U8Tag> u16;
    const ByteVec mask = hn::Set(U8Tag(), (1 << kBits) - 1);
    auto fields = hn::BitCast(u16, hn::LoadU(U8Tag(), packed));
    HWY_UNROLL(8)
    for (int f = 0; f < P::kFields; ++f) {
      const ByteVec codes = hn::And(hn::BitCast(U8Tag(), fields), mask);
      fields = hn::ShiftRight<kBits>(fields);
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) sums[r][f] = AddByteProducts(codes, quads[r], sums[r][f]);
    }
  }

  // Of kLanes tokens.
  HWY_INLINE IntVec Total(int r, int t) const {
    if constexpr (!P::kTwoGroups) return sums[r][t];
    const I32Tag i32;
    const IntVec a = sums[r][2 * t];
    const IntVec b = sums[r][2 * t + 1];
    return hn::Add(hn::ConcatLowerLower(i32, b, a), hn::ConcatUpperUpper(i32, b, a));
  }

  IntVec sums[kRows][P::kFields];
};

// Four bytes of a query row for each token.
HWY_INLINE IntVec Quad(const int8_t* bytes) {
  int32_t quad;
  std::memcpy(&quad, bytes, sizeof(quad));
  return hn::Set(I32Tag(), quad);
}

template <int kBits, int kRows>
HWY_INLINE void SumVector(const int8_t* const* bytes, int64_t num_groups, const uint8_t* packed,
                          const uint8_t* next, TokenSums<kBits, kRows>& sums) {
  using P = Packing<kBits>;
  IntVec quads[kRows];
  int64_t g = 0;
  if constexpr (P::kTwoGroups) {
    for (; g + 2 <= num_groups; g += 2) {
      for (int r = 0; r < kRows; ++r) {
        quads[r] =
            hn::ConcatLowerLower(I32Tag(), Quad(bytes[r] + 4 * g + 4), Quad(bytes[r] + 4 * g));
      }
      sums.Add(packed + g * P::kGroupBytes, quads);
      hwy::Prefetch(next + g * P::kGroupBytes);
    }
    if (g == num_groups) return;
    // The last group by itself, with zeros in the other one's place.
    uint8_t alone[P::kVectorBytes] = {};
    std::memcpy(alone, packed + g * P::kGroupBytes, P::kGroupBytes);
    for (int r = 0; r < kRows; ++r) quads[r] = Quad(bytes[r] + 4 * g);
    sums.Add(alone, quads);
  } else {
    for (; g < num_groups; ++g) {
      for (int r = 0; r < kRows; ++r) quads[r] = Quad(bytes[r] + 4 * g);
      sums.Add(packed + g * P::kGroupBytes, quads);
      hwy::Prefetch(next + g * P::kGroupBytes);
    }
  }
}

// Raises best[64] to the tokens' scores with rows [row, row + kRows).
template <int kBits, int kRows>
HWY_INLINE void ScanTile(const ScanRows& rows, int64_t row, const uint8_t* packed,
                         const uint8_t* next, const float* means, const uint16_t* scales,
                         float* best) {
  using P = Packing<kBits>;
  constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
  const F32Tag f32;
  const int8_t* bytes[kRows];
  for (int r = 0; r < kRows; ++r) bytes[r] = rows.bytes + (row + r) * rows.head_dim;
  for (int64_t v = 0; v < P::kVectors; ++v) {
    TokenSums<kBits, kRows> sums;
    SumVector(bytes, rows.head_dim / 4, packed + v * P::kVectorBytes, next + v * P::kVectorBytes,
              sums);
    for (int t = 0; t < P::kTotals; ++t) {
      const int64_t token = (t * P::kVectors + v) * kLanes;
      const Vec scale = F16::Load(scales + token);
      Vec score = F32::Load(best + token);
      for (int r = 0; r < kRows; ++r) {
        const Vec centre = hn::Set(f32, kMiddle * static_cast<float>(rows.totals[row + r]));
        const Vec centred = hn::Sub(hn::ConvertTo(f32, sums.Total(r, t)), centre);
        const Vec row_scale = hn::Mul(scale, hn::Set(f32, rows.scales[row + r]));
        score = hn::Max(score, hn::MulAdd(centred, row_scale, hn::Set(f32, means[r])));
      }
      hn::StoreU(score, f32, best + token);
    }
  }
}

float Dot(const float* row, const uint16_t* mean, int64_t size) {
  Vec sum = hn::Zero(F32Tag());
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    sum = hn::MulAdd(F32::Load(row + i), F16::Load(mean + i), sum);
  }
  float total = Sum(sum);
  for (; i < size; ++i) total += row[i] * F16ToF32(mean[i]);
  return total;
}

// Rows from `row` on, kRows at a time as long as there are as many, then fewer.
template <int kBits, int kRows>
HWY_INLINE void ScanFrom(const ScanRows& rows, int64_t row, const IndexHeadView& head,
                         const uint8_t* next, float* best) {
  const auto* packed = reinterpret_cast<const uint8_t*>(head.codes);
  const auto* scales = reinterpret_cast<const uint16_t*>(head.scales);
  const auto* mean = reinterpret_cast<const uint16_t*>(head.mean);
  for (; row + kRows <= rows.num_rows; row += kRows) {
    float means[kRows];
    for (int r = 0; r < kRows; ++r) {
      means[r] = Dot(rows.rows + (row + r) * rows.head_dim, mean, rows.head_dim);
    }
    ScanTile<kBits, kRows>(rows, row, packed, next, means, scales, best);
  }
  if constexpr (kRows > 1) ScanFrom<kBits, kRows - 1>(rows, row, head, next, best);
}

// The best of every eight.
HWY_INLINE void BestOfBlocks(const float* best, float* scores) {
  float fours[kPageTokens];
  for (int64_t t = 0; t < kPageTokens; t += kLanes) {
    Vec max = F32::Load(best + t);
    max = hn::Max(max, hn::Shuffle2301(max));
    hn::StoreU(hn::Max(max, hn::Shuffle1032(max)), F32Tag(), fours + t);
  }
  for (int64_t b = 0; b < kPageBlocks; ++b) scores[b] = std::max(fours[8 * b], fours[8 * b + 4]);
}

void ScanPageVectors(const ScanRows& rows, const IndexHeadView& head,
                     const IndexHeadView& next_head, int32_t bits, float* scores) {
  const auto* next = reinterpret_cast<const uint8_t*>(next_head.codes);
  // Scales and mean; the codes are fetched as the page's are used.
  for (int64_t at = 0; at < 2 * (kPageTokens + rows.head_dim); at += 64) {
    hwy::Prefetch(next_head.scales + at);
  }
  float best[kPageTokens];
  std::fill_n(best, kPageTokens, -std::numeric_limits<float>::infinity());
  if (bits == 4) ScanFrom<4, Packing<4>::kRows>(rows, 0, head, next, best);
  if (bits == 2) ScanFrom<2, Packing<2>::kRows>(rows, 0, head, next, best);
  if (bits == 1) ScanFrom<1, Packing<1>::kRows>(rows, 0, head, next, best);
  BestOfBlocks(best, scores);
}

// The sum of `size` products.
int32_t DotBytes(const uint8_t* codes, const int8_t* bytes, int64_t size) {
  const hn::Repartition<int8_t, I32Tag> i8;
  constexpr int64_t kStep = 4 * kLanes;
  IntVec sum = hn::Zero(I32Tag());
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    sum = AddByteProducts(hn::LoadU(U8Tag(), codes + i),
                          hn::BitCast(I32Tag(), hn::LoadU(i8, bytes + i)), sum);
  }
  int32_t total = hn::GetLane(hn::SumOfLanes(I32Tag(), sum));
  for (; i < size; ++i) total += int32_t{codes[i]} * bytes[i];
  return total;
}

float PagePromiseVectors(const ScanRows& rows, const RangeView& ranges) {
  const auto* codes = reinterpret_cast<const uint8_t*>(ranges.lows);
  const float unit = std::ldexp(1.0f, static_cast<int8_t>(*ranges.exponent));
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t r = 0; r < rows.num_rows; ++r) {
    const int64_t size = 2 * rows.head_dim;
    const int32_t sum = DotBytes(codes, rows.signed_bytes + r * size, size);
    const auto centred = static_cast<float>(sum - kRangeZero * rows.totals[r]);
    best = std::max(best, centred * (rows.scales[r] * unit));
  }
  return best;
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/check.h"

namespace everlong::cpu {

HWY_EXPORT(ScanPageVectors);
HWY_EXPORT(PagePromiseVectors);

void ScanPage(const ScanRows& rows, const IndexHeadView& head, const IndexHeadView& next,
              int32_t bits, float* scores) {
  EVERLONG_CHECK(rows.head_dim % 4 == 0);
  HWY_DYNAMIC_DISPATCH(ScanPageVectors)(rows, head, next, bits, scores);
}

float PagePromise(const ScanRows& rows, const RangeView& ranges) {
  return HWY_DYNAMIC_DISPATCH(PagePromiseVectors)(rows, ranges);
}

}  // namespace everlong::cpu
#endif
