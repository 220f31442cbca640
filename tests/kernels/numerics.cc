#include "tests/kernels/numerics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace everlong {

std::string TypeName(DType type) {
  constexpr const char* kNames[] = {"F32",  "F16",  "BF16", "F8",  "Q8_0", "Q4_0",
                                    "Q4_1", "Q5_0", "Q5_1", "Q4K", "Q5K",  "Q6K"};
  return kNames[static_cast<int>(type)];
}

Values RoundTo(DType type, Values values) {
  for (float& value : values) {
    if (type == DType::kF16) value = F16ToF32(F32ToF16(value));
    if (type == DType::kBF16) value = BF16ToF32(F32ToBF16(value));
  }
  return values;
}

std::vector<std::byte> Encode(DType type, const Values& values) {
  std::vector<std::byte> bytes(values.size() * ByteSize(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == DType::kF16 ? F32ToF16(values[i]) : F32ToBF16(values[i]);
    const void* from = type == DType::kF32 ? static_cast<const void*>(&values[i]) : &half;
    std::memcpy(bytes.data() + i * ByteSize(type), from, ByteSize(type));
  }
  return bytes;
}

Values Decode(DType type, const std::byte* bytes, int64_t count) {
  Values values(count);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    if (type == DType::kF32) {
      std::memcpy(&values[i], bytes + i * 4, 4);
    } else {
      std::memcpy(&half, bytes + i * 2, 2);
      values[i] = type == DType::kF16 ? F16ToF32(half) : BF16ToF32(half);
    }
  }
  return values;
}

Values RandomValues(std::mt19937& random, int64_t count, DType type, double deviation) {
  std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
  Values values(count);
  for (float& value : values) value = normal(random);
  return RoundTo(type, std::move(values));
}

double UnitRoundoff(DType type) {
  return type == DType::kF32 ? 0x1p-24 : type == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

double Gamma(int64_t n, DType type) {
  const double share = static_cast<double>(n) * UnitRoundoff(type);
  return share / (1.0 - share);
}

double RoundingError(DType type, double value) {
  const double least_spacing = type == DType::kF16    ? 0x1p-24
                               : type == DType::kBF16 ? 0x1p-133
                                                      : 0x1p-149;
  return std::max(std::abs(value) * UnitRoundoff(type), least_spacing / 2);
}

void ExpectWithin(const Values& actual, const Values& expected, const std::vector<double>& bound) {
  ASSERT_EQ(actual.size(), expected.size());
  ASSERT_EQ(actual.size(), bound.size());
  size_t outside = 0;
  size_t worst = 0;
  double worst_ratio = 1.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - expected[i]);
    if (error <= bound[i]) continue;
    ++outside;
    const double ratio = std::isnan(error) ? INFINITY : error / bound[i];
    if (ratio >= worst_ratio) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  EXPECT_EQ(outside, 0u) << "of " << actual.size() << "; the worst is number " << worst << ": "
                         << actual[worst] << " instead of " << expected[worst] << " within "
                         << bound[worst];
}

// The sum of squares has no cancellation, so its share of error is at most Gamma(n). The root
// halves it; six roundings follow, and that to `type`.
void ExpectNormalized(const Values& actual, const Values& x, const Values& weight, float eps,
                      DType type) {
  const auto n = static_cast<int64_t>(x.size());
  double squares = 0.0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  Values expected;
  std::vector<double> bound;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = x[i] * factor * weight[i];
    const double error = Gamma(n / 2 + 8) * std::abs(exact);
    expected.push_back(static_cast<float>(exact));
    bound.push_back(error + RoundingError(type, std::abs(exact) + error));
  }
  ExpectWithin(actual, expected, bound);
}

void ExpectSameBits(const Values& actual, const Values& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
        << "number " << i << ": " << actual[i] << " instead of " << expected[i];
  }
}

}  // namespace everlong
