// Vectors of f32, of at most 16 lanes, and what is loaded into them. Included once per target.
#if defined(EVERLONG_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVERLONG_KERNELS_CPU_SIMD_INL_H_
#undef EVERLONG_KERNELS_CPU_SIMD_INL_H_
#else
#define EVERLONG_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::CappedTag<float, 16>;
using U32Tag = hn::Rebind<uint32_t, F32Tag>;
using I32Tag = hn::Rebind<int32_t, F32Tag>;
using U8Tag = hn::Repartition<uint8_t, U32Tag>;
using U16Tag = hn::Rebind<uint16_t, F32Tag>;
using F16Tag = hn::Rebind<hwy::float16_t, F32Tag>;
using Vec = hn::Vec<F32Tag>;
using WordVec = hn::Vec<U32Tag>;
using IntVec = hn::Vec<I32Tag>;
using ByteVec = hn::Vec<U8Tag>;

inline constexpr int64_t kLanes = hn::MaxLanes(F32Tag());

// The bf16 in the lower and in the upper halves of words.
HWY_INLINE Vec LowerBF16(WordVec words) {
  return hn::BitCast(F32Tag(), hn::ShiftLeft<16>(words));
}
HWY_INLINE Vec UpperBF16(WordVec words) {
  return hn::BitCast(F32Tag(), hn::And(words, hn::Set(U32Tag(), 0xFFFF0000u)));
}

// Element formats: how kLanes consecutive elements become f32, and how the elements that share the
// words of a vector do.
struct F32 {
  using Element = float;
  static HWY_INLINE Vec Load(const float* from) { return hn::LoadU(F32Tag(), from); }
  static HWY_INLINE void Unpack(WordVec words, Vec* out) { *out = hn::BitCast(F32Tag(), words); }
};

struct BF16 {
  using Element = uint16_t;
  static HWY_INLINE Vec Load(const uint16_t* from) {
    return LowerBF16(hn::PromoteTo(U32Tag(), hn::LoadU(U16Tag(), from)));
  }
  static HWY_INLINE void Unpack(WordVec words, Vec* out) {
    out[0] = LowerBF16(words);
    out[1] = UpperBF16(words);
  }
};

struct F16 {
  using Element = uint16_t;
  static HWY_INLINE Vec Widen(hn::Vec<U16Tag> halves) {
#if HWY_TARGET == HWY_SSSE3
    // Highway's emulation knows neither infinity nor NaN. As F16ToF32 in dtype.h.
    const U32Tag u32;
    const F32Tag f32;
    const WordVec bits = hn::PromoteTo(u32, halves);
    const WordVec magnitude = hn::And(bits, hn::Set(u32, 0x7FFFu));
    const WordVec sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
    const WordVec placed = hn::ShiftLeft<13>(magnitude);
    const Vec scaled = hn::Mul(hn::BitCast(f32, placed), hn::Set(f32, 0x1p112f));
    const Vec special = hn::BitCast(f32, hn::Or(placed, hn::Set(u32, 0x7F800000u)));
    const auto finite = hn::Lt(hn::BitCast(f32, placed), hn::Set(f32, 0x1p-96f));
    return hn::Or(hn::IfThenElse(finite, scaled, special), hn::BitCast(f32, sign));
#else
    return hn::PromoteTo(F32Tag(), hn::BitCast(F16Tag(), halves));
#endif
  }
  static HWY_INLINE Vec Load(const uint16_t* from) {
    return Widen(hn::LoadU(U16Tag(), from));
  }
  static HWY_INLINE void Unpack(WordVec words, Vec* out) {
    const WordVec lower = hn::And(words, hn::Set(U32Tag(), 0xFFFFu));
    out[0] = Widen(hn::TruncateTo(U16Tag(), lower));
    out[1] = Widen(hn::TruncateTo(U16Tag(), hn::ShiftRight<16>(words)));
  }
};

// e^x within 2 units in the last place; 0 below the normal range, infinity above 88.37. Polynomial
// of Cephes expf.
HWY_INLINE Vec Exp(Vec x) {
  const F32Tag f32;
  const auto below = hn::Lt(x, hn::Set(f32, -87.33f));
  x = hn::Min(hn::Max(x, hn::Set(f32, -87.33f)), hn::Set(f32, 88.7f));
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits, here with the
  // exponent's bias.
  const Vec rounder = hn::Set(f32, 0x1.8p23f + 127.0f);
  const Vec rounded = hn::MulAdd(x, hn::Set(f32, 1.44269504f), rounder);
  const Vec n = hn::Sub(rounded, rounder);
  Vec r = hn::NegMulAdd(n, hn::Set(f32, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(f32, -2.12194440e-4f), r);
  Vec p = hn::Set(f32, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(f32, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(f32, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(f32, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(f32, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(f32, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(f32, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::BitCast(U32Tag(), rounded));
  return hn::IfThenZeroElse(below, hn::Mul(p, hn::BitCast(f32, power)));
}

// sums[lane] += the four products of unsigned and signed bytes in a lane. The 16-bit sums of two
// products that the older instructions form saturate.
HWY_INLINE IntVec AddByteProducts(ByteVec u, IntVec s, IntVec sums) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_MAX_BYTES == 64
  // Highway 1.0 asks compilers for the VEX form in place of this one, which they then refuse.
  asm("vpdpbusd %2, %1, %0" : "+v"(sums.raw) : "v"(u.raw), "v"(s.raw));
  return sums;
#elif HWY_ARCH_X86 && HWY_MAX_BYTES == 64
  const auto pairs = _mm512_maddubs_epi16(u.raw, s.raw);
  return sums + IntVec{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))};
#elif HWY_ARCH_X86 && HWY_MAX_BYTES == 32
  const auto pairs = _mm256_maddubs_epi16(u.raw, s.raw);
  return sums + IntVec{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))};
#elif HWY_ARCH_X86
  const auto pairs = _mm_maddubs_epi16(u.raw, s.raw);
  return sums + IntVec{_mm_madd_epi16(pairs, _mm_set1_epi16(1))};
#else
  HWY_ALIGN uint8_t a[hn::MaxLanes(U8Tag())];
  HWY_ALIGN int8_t b[hn::MaxLanes(U8Tag())];
  HWY_ALIGN int32_t total[hn::MaxLanes(I32Tag())];
  hn::Store(u, U8Tag(), a);
  hn::Store(hn::BitCast(hn::Repartition<int8_t, I32Tag>(), s), hn::Repartition<int8_t, I32Tag>(),
            b);
  hn::Store(sums, I32Tag(), total);
  for (size_t i = 0; i < hn::MaxLanes(U8Tag()); ++i) total[i / 4] += int32_t{a[i]} * b[i];
  return hn::Load(I32Tag(), total);
#endif
}

HWY_INLINE float Sum(Vec v) {
  return hn::GetLane(hn::SumOfLanes(F32Tag(), v));
}
HWY_INLINE float Max(Vec v) {
  return hn::GetLane(hn::MaxOfLanes(F32Tag(), v));
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#endif
