// Conversions of 16-bit types, exhaustively, against their definition.
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
double Decoded(const Format& format, uint16_t bits) {
  const int exponent = bits >> format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  return std::ldexp(significand,
                    std::max(exponent, 1) - format.exponent_bias - format.mantissa_bits);
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

}  // namespace
}  // namespace everlong
