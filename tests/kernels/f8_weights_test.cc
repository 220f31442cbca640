// Products with matrices that a device keeps in 8 bits, a factor for each row.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/weights.h"

namespace everlong {
namespace {

struct Shape {
  int64_t outputs;
  int64_t cols;
};

// Rows of different magnitudes: of zeros, and with elements that are small beside the largest.
Values UnevenRows(std::mt19937& random, const Shape& shape) {
  Values w = RandomValues(random, shape.outputs * shape.cols);
  for (int64_t n = 0; n < shape.outputs; ++n) {
    const auto row = w.begin() + n * shape.cols;
    const float magnitude =
        n % 7 == 3 ? 0.0f : std::ldexp(1.0f, static_cast<int>(random() % 24) - 16);
    for (int64_t i = 0; i < shape.cols; ++i) row[i] *= magnitude;
    if (n % 3 == 1) row[static_cast<int64_t>(random() % shape.cols)] *= 1000.0f;
  }
  return w;
}

struct Product {
  Values expected;
  std::vector<double> bound;
};

// before + x w^T + bias in double, and what sums of cols + 2 terms in any order and rounding to
// `out_type` may be off.
Product Multiply(const Values& x, const Values& w, const Values& bias, const Values& before,
                 int64_t cols, DType out_type) {
  Product product;
  const auto outputs = static_cast<int64_t>(bias.size());
  for (int64_t i = 0; i < static_cast<int64_t>(before.size()); ++i) {
    const int64_t r = i / outputs;
    const int64_t n = i % outputs;
    double sum = double{before[i]} + bias[n];
    double magnitude = std::abs(before[i]) + std::abs(bias[n]);
    for (int64_t k = 0; k < cols; ++k) {
      const double term = double{x[r * cols + k]} * w[n * cols + k];
      sum += term;
      magnitude += std::abs(term);
    }
    product.expected.push_back(static_cast<float>(sum));
    product.bound.push_back(SumError(cols + 2, DType::kBF16) * magnitude +
                            RoundingError(DType::kF32, sum) + RoundingError(out_type, magnitude));
  }
  return product;
}

using Parameters = std::tuple<Backend, Shape>;

std::string ParametersName(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [backend, shape] = info.param;
  return backend.name + "_" + std::to_string(shape.outputs) + "x" + std::to_string(shape.cols);
}

// GPUs only.
class F8WeightsTest : public ::testing::TestWithParam<Parameters> {
 protected:
  void ExpectRightProducts(int64_t rows) {
    const auto& [outputs, cols] = shape_;
    const Values x = RandomValues(random_, rows * cols, DType::kBF16);
    const Values zeros(rows * outputs);
    const Values before = RandomValues(random_, rows * outputs);
    const Product rounded = Multiply(x, kept_, Values(outputs), zeros, cols, DType::kBF16);
    const Product added = Multiply(x, kept_, bias_, before, cols, DType::kF32);
    for (const int64_t decode_rows : {int64_t{0}, rows / 2, rows}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows, " << decode_rows << " decoded");
      MatMulArgs args = {.w = w_,
                         .x = device_.PlaceActivations(x),
                         .out = device_.PlaceActivations(zeros),
                         .x_stride = cols,
                         .out_stride = outputs,
                         .rows = static_cast<int32_t>(rows),
                         .decode_rows = static_cast<int32_t>(decode_rows)};
      device_->MatMul(args);
      ExpectWithin(device_.ReadActivations(args.out, rows * outputs), rounded.expected,
                   rounded.bound);
      args.mode = MatMulOut::kAddF32;
      args.bias = device_.PlaceFloats(bias_);
      args.out = device_.PlaceFloats(before);
      device_->MatMul(args);
      ExpectWithin(device_.ReadFloats(args.out, rows * outputs), added.expected, added.bound);
      device_.FreePlaced();
    }
  }

  std::mt19937 random_{1};
  Device device_{std::get<Backend>(GetParam())};
  Shape shape_ = std::get<Shape>(GetParam());
  Values bias_ = RandomValues(random_, shape_.outputs);
  Values values_ = UnevenRows(random_, shape_);
  Values kept_ = AsKept(DType::kF8, values_, shape_.cols);
  std::vector<std::byte> bytes_ = Encode(DType::kF32, values_);
  HostMatrix part_ = {bytes_.data(), shape_.outputs, shape_.cols, DType::kF32};
  Matrix w_ = device_->LoadMatrix({&part_, 1});
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(F8WeightsTest);
// The rows of the last two are not aligned.
INSTANTIATE_TEST_SUITE_P(Backends, F8WeightsTest,
                         ::testing::Combine(::testing::ValuesIn(F8WeightBackends()),
                                            ::testing::Values(Shape{1, 1024}, Shape{97, 512},
                                                              Shape{40, 4096}, Shape{33, 16},
                                                              Shape{257, 128}, Shape{130, 77},
                                                              Shape{64, 8})),
                         ParametersName);

TEST_P(F8WeightsTest, FewRowsAreWithinBoundsOfTheExactProduct) {
  for (int64_t rows = 1; rows <= 17; ++rows) ExpectRightProducts(rows);
}

TEST_P(F8WeightsTest, ManyRowsAreWithinBoundsOfTheExactProduct) {
  for (const int64_t rows : {33, 64, 300}) ExpectRightProducts(rows);
}

}  // namespace
}  // namespace everlong
