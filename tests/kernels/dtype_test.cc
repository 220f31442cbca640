// Conversions of 16-bit and 8-bit types, exhaustively, against their definition.
#include "kernels/dtype.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace everlong {
namespace {

struct Format {
  int mantissa_bits;
  int exponent_bias;
  uint16_t infinity;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

class HalfFormatTest : public ::testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, HalfFormatTest,
                         ::testing::Values(Format{10, 15, 0x7C00, F16ToF32, F32ToF16},
                                           Format{7, 127, 0x7F80, BF16ToF32, F32ToBF16}),
                         [](const auto& info) { return info.index == 0 ? "F16" : "BF16"; });

// The value of finite non-negative bits by IEEE 754's definition.
double Decoded(int mantissa_bits, int exponent_bias, uint16_t bits) {
  const int exponent = bits >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  return std::ldexp(significand, std::max(exponent, 1) - exponent_bias - mantissa_bits);
}

double Decoded(const Format& format, uint16_t bits) {
  return Decoded(format.mantissa_bits, format.exponent_bias, bits);
}

TEST_P(HalfFormatTest, WidensEveryFiniteValueExactlyAndBack) {
  const Format& format = GetParam();
  for (uint16_t bits = 0; bits < format.infinity; ++bits) {
    const uint16_t negative = bits | 0x8000;
    ASSERT_EQ(format.widen(bits), Decoded(format, bits)) << bits;
    ASSERT_EQ(format.widen(negative), -Decoded(format, bits)) << bits;
    ASSERT_EQ(format.narrow(format.widen(bits)), bits);
    ASSERT_EQ(format.narrow(format.widen(negative)), negative);
  }
}

TEST_P(HalfFormatTest, RoundsToNearestAndTiesToEven) {
  const Format& format = GetParam();
  for (uint16_t below = 0; below < format.infinity; ++below) {
    const uint16_t above = below + 1;
    // Past the largest value IEEE 754 rounds as if the exponent went on.
    const double middle = (Decoded(format, below) + Decoded(format, above)) / 2;
    const auto tie = static_cast<float>(middle);
    ASSERT_EQ(tie, middle);
    ASSERT_EQ(format.narrow(tie), below % 2 == 0 ? below : above) << below;
    ASSERT_EQ(format.narrow(std::nextafter(tie, 0.0f)), below) << below;
    ASSERT_EQ(format.narrow(std::nextafter(tie, INFINITY)), above) << below;
    ASSERT_EQ(format.narrow(-tie), (below % 2 == 0 ? below : above) | 0x8000) << below;
  }
}

TEST_P(HalfFormatTest, KeepsInfinityAndNan) {
  const Format& format = GetParam();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(format.widen(format.infinity), infinity);
  EXPECT_EQ(format.widen(format.infinity | 0x8000), -infinity);
  EXPECT_EQ(format.narrow(infinity), format.infinity);
  EXPECT_EQ(format.narrow(-infinity), format.infinity | 0x8000);
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::max()), format.infinity);
  for (int bits = format.infinity + 1; bits < 0x8000; ++bits) {
    ASSERT_TRUE(std::isnan(format.widen(static_cast<uint16_t>(bits)))) << bits;
    ASSERT_TRUE(std::isnan(format.widen(static_cast<uint16_t>(bits | 0x8000)))) << bits;
  }
  for (const uint32_t bits : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0x7F80FFFFu, 0x7FC00000u}) {
    EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::bit_cast<float>(bits))))) << bits;
  }
}

constexpr uint8_t kLargestF8 = 0x7E;

double DecodedF8(uint8_t bits) {
  return Decoded(3, 7, bits);
}

TEST(F8Test, WidensEveryFiniteValueExactlyAndBack) {
  EXPECT_EQ(DecodedF8(kLargestF8), 448.0);
  for (uint8_t bits = 0; bits <= kLargestF8; ++bits) {
    const uint8_t negative = bits | 0x80;
    ASSERT_EQ(F8ToF32(bits), DecodedF8(bits)) << int{bits};
    ASSERT_EQ(F8ToF32(negative), -DecodedF8(bits)) << int{bits};
    ASSERT_EQ(F32ToF8(F8ToF32(bits)), bits);
    ASSERT_EQ(F32ToF8(F8ToF32(negative)), negative);
  }
}

TEST(F8Test, RoundsToNearestAndTiesToEven) {
  for (uint8_t below = 0; below < kLargestF8; ++below) {
    const uint8_t above = below + 1;
    const auto tie = static_cast<float>((DecodedF8(below) + DecodedF8(above)) / 2);
    ASSERT_EQ(F32ToF8(tie), below % 2 == 0 ? below : above) << int{below};
    ASSERT_EQ(F32ToF8(std::nextafter(tie, 0.0f)), below) << int{below};
    ASSERT_EQ(F32ToF8(std::nextafter(tie, INFINITY)), above) << int{below};
    ASSERT_EQ(F32ToF8(-tie), (below % 2 == 0 ? below : above) | 0x80) << int{below};
  }
  EXPECT_EQ(F32ToF8(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(F8Test, SaturatesAndKeepsNan) {
  for (const float large : {448.0f, 449.0f, 480.0f, 1e30f, INFINITY}) {
    EXPECT_EQ(F32ToF8(large), kLargestF8) << large;
    EXPECT_EQ(F32ToF8(-large), kLargestF8 | 0x80) << large;
  }
  EXPECT_TRUE(std::isnan(F8ToF32(F32ToF8(NAN))));
  EXPECT_TRUE(std::isnan(F8ToF32(F32ToF8(-NAN))));
  EXPECT_TRUE(std::isnan(F8ToF32(0x7F)));
  EXPECT_TRUE(std::isnan(F8ToF32(0xFF)));
}

}  // namespace
}  // namespace everlong
