#include "tests/kernels/numerics.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/dtype.h"

namespace everlong {

std::string TypeName(DType type) {
  constexpr const char* kNames[] = {"F32",  "F16",  "BF16", "F8",  "Q8_0", "Q4_0",
                                    "Q4_1", "Q5_0", "Q5_1", "Q4K", "Q5K",  "Q6K"};
  return kNames[static_cast<int>(type)];
}

Values RoundTo(DType type, const Values& values) {
  return Decode(type, Encode(type, values).data(), static_cast<int64_t>(values.size()));
}

std::vector<std::byte> Encode(DType type, const Values& values) {
  std::vector<std::byte> bytes(values.size() * ByteSize(type));
  for (size_t i = 0; i < values.size(); ++i) {
    WriteElement(bytes.data() + i * ByteSize(type), type, values[i]);
  }
  return bytes;
}

Values Decode(DType type, const std::byte* bytes, int64_t count) {
  Values values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = ReadElement(bytes + i * ByteSize(type), type);
  return values;
}

Values RandomValues(std::mt19937& random, int64_t count, DType type, double deviation) {
  std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
  Values values(count);
  for (float& value : values) value = normal(random);
  return RoundTo(type, values);
}

double UnitRoundoff(DType type) {
  switch (type) {
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kF8:
      return 0x1p-4;
    default:
      return 0x1p-24;
  }
}

double Gamma(int64_t n, DType type) {
  const double share = static_cast<double>(n) * UnitRoundoff(type);
  return share / (1.0 - share);
}

double SumError(int64_t n, DType type) {
  return Gamma(type == DType::kF32 ? n : 2 * n);
}

double RoundingError(DType type, double value) {
  const double least_spacing = type == DType::kF16    ? 0x1p-24
                               : type == DType::kBF16 ? 0x1p-133
                               : type == DType::kF8   ? 0x1p-9
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
// halves it; six roundings follow, two more of the scale of kF8, and that to `type`.
void ExpectNormalized(const Values& actual, const Values& x, const Values& weight, float eps,
                      DType type) {
  const auto n = static_cast<int64_t>(x.size());
  double squares = 0.0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  Values expected;
  for (size_t i = 0; i < x.size(); ++i) {
    expected.push_back(static_cast<float>(x[i] * factor * weight[i]));
  }
  double largest = 0.0;
  for (const float value : expected) largest = std::max(largest, std::abs(double{value}));
  const double unit = type == DType::kF8 ? largest / 448 : 1.0;
  std::vector<double> bound;
  for (const float value : expected) {
    const double error = Gamma(n / 2 + 11) * std::abs(value);
    bound.push_back(error + unit * RoundingError(type, (std::abs(value) + error) / unit));
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
