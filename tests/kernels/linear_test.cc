// MatMul and Embed, and how LoadMatrix stacks parts.
#include <cmath>
#include <limits>
#include <tuple>

#include "gtest/gtest.h"
#include "kernels/quant.h"
#include "tests/kernels/step.h"
#include "tests/kernels/weights.h"

namespace everlong {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int64_t rows;
  int64_t cols;
  std::vector<int64_t> part_rows;
};

// A product with strides wider than its rows. What lies between rows of x is NaN, and what lies
// between rows of the result is left alone.
struct Product {
  static constexpr int64_t kGap = 3;

  Product(std::mt19937& random, const Shape& shape, DType weight_type, DType activation_type)
      : weights(random, weight_type, shape.part_rows, shape.cols),
        rows(shape.rows),
        x(RandomValues(random, shape.rows * shape.cols, activation_type)),
        bias(RandomValues(random, weights.rows)),
        before(RandomValues(random, shape.rows * (weights.rows + kGap), activation_type)) {}

  // `w` are the weights on the device.
  Values Run(Device& device, const Matrix& w, MatMulOut mode, bool with_bias,
             int64_t decode_rows = 0) const {
    Values spaced(rows * (weights.cols + kGap), kNan);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(x.begin() + r * weights.cols, weights.cols,
                  spaced.begin() + r * (weights.cols + kGap));
    }
    const bool activations = mode == MatMulOut::kActivations;
    void* out = activations ? device.PlaceActivations(before) : device.PlaceFloats(before);
    device->MatMul({.w = w,
                    .x = device.PlaceActivations(spaced),
                    .bias = with_bias ? device.PlaceFloats(bias) : nullptr,
                    .out = out,
                    .x_stride = weights.cols + kGap,
                    .out_stride = weights.rows + kGap,
                    .rows = static_cast<int32_t>(rows),
                    .decode_rows = static_cast<int32_t>(decode_rows),
                    .mode = mode});
    const auto count = static_cast<int64_t>(before.size());
    return activations ? device.ReadActivations(out, count) : device.ReadFloats(out, count);
  }

  // The error bound of a sum of products with two further terms in any order, of rounding x for
  // quantised weights, of rounding weights as `backend` does, and of rounding the result to
  // `out_type`; 0 between the rows.
  std::vector<double> Bound(const Backend& backend, MatMulOut mode, bool with_bias,
                            DType out_type) const {
    const double weight_share =
        backend.weight_type == DType::kF32 ? 0.0 : UnitRoundoff(backend.weight_type);
    const int64_t stride = weights.rows + kGap;
    const Values steps = StepsOfX();
    std::vector<double> bound(before.size(), 0.0);
    for (int64_t i = 0; i < rows * weights.rows; ++i) {
      const int64_t r = i / weights.rows;
      const int64_t n = i % weights.rows;
      double magnitude = with_bias ? std::abs(bias[n]) : 0.0;
      double rounding = 0.0;
      for (int64_t k = 0; k < weights.cols; ++k) {
        const double w = weights.magnitudes[n * weights.cols + k];
        const double product = std::abs(x[r * weights.cols + k]) * w;
        magnitude += product;
        rounding += steps[r * weights.cols + k] / 2 * w + weight_share * product;
      }
      if (mode == MatMulOut::kAddF32) magnitude += std::abs(before[r * stride + n]);
      magnitude += rounding;
      bound[r * stride + n] = SumError(weights.cols + 2, backend.activation_type) * magnitude +
                              rounding + RoundingError(out_type, magnitude);
    }
    return bound;
  }

  // What each element of x may be rounded to a multiple of.
  Values StepsOfX() const {
    Values steps(x.size(), 0.0f);
    if (!IsQuantized(weights.type)) return steps;
    const auto count = static_cast<size_t>(ScaledElements(weights.type));
    for (size_t begin = 0; begin < x.size(); begin += count) {
      float most = 0.0f;
      for (size_t i = begin; i < begin + count; ++i) most = std::max(most, std::abs(x[i]));
      std::fill_n(steps.begin() + static_cast<int64_t>(begin), count, most * 0x1p-19f);
    }
    return steps;
  }

  Weights weights;
  int64_t rows;
  Values x;
  Values bias;
  Values before;  // what `out` holds at first
};

using MatMulParam = std::tuple<Backend, DType, Shape>;

std::string MatMulName(const ::testing::TestParamInfo<MatMulParam>& info) {
  const auto& [backend, type, shape] = info.param;
  return backend.name + TypeName(type) + "_" + std::to_string(shape.rows) + "x" +
         std::to_string(shape.cols);
}

class MatMulTest : public ::testing::TestWithParam<MatMulParam> {};
INSTANTIATE_TEST_SUITE_P(
    Backends, MatMulTest,
    ::testing::Combine(
        ::testing::ValuesIn(BackendsBesideReference()), ::testing::ValuesIn(PlainTypes()),
        ::testing::Values(Shape{1, 1, {1}}, Shape{1, 576, {576, 192, 192}}, Shape{2, 64, {3}},
                          Shape{3, 65, {130}}, Shape{4, 1537, {49}}, Shape{5, 127, {32, 1}},
                          Shape{8, 128, {257}}, Shape{17, 255, {16, 16, 31}}, Shape{33, 7, {97}},
                          Shape{64, 96, {96}}, Shape{130, 48, {40}})),
    MatMulName);

TEST_P(MatMulTest, AgreesWithReferenceInEveryMode) {
  const auto& [backend, weight_type, shape] = GetParam();
  Device device(backend);
  Device reference(MakeReferenceKernels());
  std::mt19937 random(1);
  const Product product(random, shape, weight_type, device.activation_type());
  const Matrix w = product.weights.LoadInto(device);
  const Matrix reference_w = product.weights.LoadInto(reference);
  for (const MatMulOut mode : {MatMulOut::kActivations, MatMulOut::kF32, MatMulOut::kAddF32}) {
    for (const bool with_bias : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "mode " << int(mode) << ", bias " << with_bias);
      const DType out_type =
          mode == MatMulOut::kActivations ? device.activation_type() : DType::kF32;
      const Values expected = product.Run(reference, reference_w, mode, with_bias);
      const std::vector<double> bound = product.Bound(backend, mode, with_bias, out_type);
      for (const int64_t decode_rows : {int64_t{0}, shape.rows / 2, shape.rows}) {
        ExpectWithin(product.Run(device, w, mode, with_bias, decode_rows), expected, bound);
      }
    }
  }
}

class QuantizedMatMulTest : public MatMulTest {};
// Rows of x: one tile's, several's, more than a task takes. Columns of panels and parts of them.
INSTANTIATE_TEST_SUITE_P(
    Backends, QuantizedMatMulTest,
    ::testing::Combine(::testing::ValuesIn(ByteProductBackends()),
                       ::testing::ValuesIn(QuantizedTypes()),
                       ::testing::Values(Shape{1, 512, {32, 3}}, Shape{2, 256, {65}},
                                         Shape{3, 768, {1}}, Shape{4, 512, {96}},
                                         Shape{7, 256, {31, 34}}, Shape{16, 256, {71}},
                                         Shape{65, 256, {40}}, Shape{300, 256, {5}})),
    MatMulName);

TEST_P(QuantizedMatMulTest, AgreesWithReference) {
  const auto& [backend, type, shape] = GetParam();
  Device device(backend);
  Device reference(MakeReferenceKernels());
  std::mt19937 random(1);
  const Product product(random, shape, type, device.activation_type());
  const auto run = [&](Device& d, int64_t decode_rows) {
    return product.Run(d, product.weights.LoadInto(d), MatMulOut::kAddF32, true, decode_rows);
  };
  const Values expected = run(reference, 0);
  for (const int64_t decode_rows : {int64_t{0}, shape.rows}) {
    ExpectWithin(run(device, decode_rows), expected,
                 product.Bound(backend, MatMulOut::kAddF32, true, DType::kF32));
  }
}

class LinearTest : public ::testing::TestWithParam<Backend> {};
using LinearDeathTest = LinearTest;
INSTANTIATE_TEST_SUITE_P(Backends, LinearTest, ::testing::ValuesIn(WeightBackends()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Backends, LinearDeathTest, ::testing::ValuesIn(WeightBackends()),
                         [](const auto& info) { return info.param.name; });

// Integers of these sizes are exact in every type, so the result has one right value.
TEST_P(LinearTest, MultipliesSmallIntegersExactly) {
  constexpr int64_t kRows = 7;
  constexpr int64_t kCols = 37;
  constexpr int64_t kOutputs = 19;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    Device device(GetParam());
    Values x;
    Values w;
    Values expected;
    for (int64_t i = 0; i < kRows * kCols; ++i) x.push_back(static_cast<float>(i * 5 % 7 - 3));
    for (int64_t i = 0; i < kOutputs * kCols; ++i) w.push_back(static_cast<float>(i * 3 % 11 - 5));
    for (int64_t i = 0; i < kRows * kOutputs; ++i) {
      int64_t sum = 100 + i % kOutputs;
      for (int64_t k = 0; k < kCols; ++k) {
        sum += static_cast<int64_t>(x[i / kOutputs * kCols + k] * w[i % kOutputs * kCols + k]);
      }
      expected.push_back(static_cast<float>(sum));
    }
    Values bias;
    for (int64_t n = 0; n < kOutputs; ++n) bias.push_back(static_cast<float>(100 + n));
    const std::vector<std::byte> encoded = Encode(type, w);
    const HostMatrix part = {encoded.data(), kOutputs, kCols, type};
    for (const int32_t decode_rows : {0, 3, 7}) {
      float* out = device.PlaceFloats(Values(expected.size()));
      device->MatMul({.w = device->LoadMatrix({&part, 1}),
                      .x = device.PlaceActivations(x),
                      .bias = device.PlaceFloats(bias),
                      .out = out,
                      .x_stride = kCols,
                      .out_stride = kOutputs,
                      .rows = kRows,
                      .decode_rows = decode_rows,
                      .mode = MatMulOut::kF32});
      ExpectSameBits(device.ReadFloats(out, kRows * kOutputs), expected);
    }
  }
}

using RowParam = std::tuple<Backend, DType, int64_t>;  // of weights with so many columns

std::string RowName(const ::testing::TestParamInfo<RowParam>& info) {
  const auto& [backend, type, cols] = info.param;
  return backend.name + TypeName(type) + "_" + std::to_string(cols);
}

class RowTest : public ::testing::TestWithParam<RowParam> {};
INSTANTIATE_TEST_SUITE_P(Backends, RowTest,
                         ::testing::Combine(::testing::ValuesIn(WeightBackends()),
                                            ::testing::ValuesIn(WeightTypes()),
                                            ::testing::Values(512)),
                         RowName);
INSTANTIATE_TEST_SUITE_P(Unaligned, RowTest,
                         ::testing::Combine(::testing::ValuesIn(WeightBackends()),
                                            ::testing::ValuesIn(PlainTypes()),
                                            ::testing::Values(77)),
                         RowName);

TEST_P(RowTest, IsTheSameWhateverTheRowsBesideIt) {
  const auto& [backend, type, cols] = GetParam();
  Device device(backend);
  std::mt19937 random(2);
  constexpr int64_t kRows = 70;
  const Weights weights(random, type, {101}, cols);
  const Matrix w = weights.LoadInto(device);
  const Values x = RandomValues(random, kRows * cols, device.activation_type());
  const auto run = [&, cols = cols](int64_t first, int64_t rows, int64_t decode_rows) {
    float* out = device.PlaceFloats(Values(rows * w.rows));
    device->MatMul({.w = w,
                    .x = device.PlaceActivations(
                        Values(x.begin() + first * cols, x.begin() + (first + rows) * cols)),
                    .out = out,
                    .x_stride = cols,
                    .out_stride = w.rows,
                    .rows = static_cast<int32_t>(rows),
                    .decode_rows = static_cast<int32_t>(decode_rows),
                    .mode = MatMulOut::kF32});
    return device.ReadFloats(out, rows * w.rows);
  };
  const auto slice = [&](const Values& all, int64_t first, int64_t rows) {
    return Values(all.begin() + first * w.rows, all.begin() + (first + rows) * w.rows);
  };
  const Values prompts = run(0, kRows, 0);
  const Values decoded = run(0, kRows, kRows);
  for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64}) {
    for (const int64_t first : {int64_t{0}, kRows - rows}) {
      ExpectSameBits(run(first, rows, 0), slice(prompts, first, rows));
      ExpectSameBits(run(first, rows, rows), slice(decoded, first, rows));
    }
    const Values both = run(0, kRows, rows);
    ExpectSameBits(slice(both, 0, rows), slice(decoded, 0, rows));
    ExpectSameBits(slice(both, rows, kRows - rows), slice(prompts, rows, kRows - rows));
    device.FreePlaced();
  }
}

// What lies around a product in a layer. In a decode step a backend may do it all at once.
struct Neighbourhood {
  Neighbourhood(Device& d, std::mt19937& random, int32_t num_rows, int32_t inputs, int32_t gates)
      : device(d),
        rows(num_rows),
        width(inputs),
        num_gates(gates),
        w(Weights(random, DType::kBF16, {gates, gates}, inputs).LoadInto(d)),
        x(d.PlaceFloats(RandomValues(random, int64_t{rows} * inputs))),
        weight(d.PlaceFloats(RandomValues(random, inputs))),
        normed(d.PlaceActivations(Values(rows * inputs))),
        gate_up(d.PlaceActivations(Values(rows * 2 * gates))),
        gated(d.PlaceActivations(Values(rows * gates))) {}

  void Normalize() const {
    device->RmsNorm(
        {.x = x, .weight = weight, .out = normed, .rows = rows, .width = width, .eps = 1e-5f});
  }
  void Multiply() const {
    device->MatMul({.w = w,
                    .x = normed,
                    .out = gate_up,
                    .x_stride = width,
                    .out_stride = w.rows,
                    .rows = rows,
                    .decode_rows = rows});
  }
  void Activate() const {
    device->GatedActivation({.gate_up = gate_up, .out = gated, .rows = rows, .width = num_gates});
  }
  void Clear() const {
    const std::vector<std::byte> zeros(int64_t{rows} * std::max(width, 2 * num_gates) * 4);
    const int64_t bytes = ByteSize(device.activation_type()) * rows;
    device->Upload(normed, zeros.data(), bytes * width);
    device->Upload(gate_up, zeros.data(), bytes * 2 * num_gates);
    device->Upload(gated, zeros.data(), bytes * num_gates);
  }
  Values Results() const {
    Values all = device.ReadActivations(normed, rows * width);
    for (const auto& [data, count] :
         {std::pair(gate_up, 2 * num_gates), std::pair(gated, num_gates)}) {
      const Values some = device.ReadActivations(data, rows * count);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  Device& device;
  int32_t rows;
  int32_t width;
  int32_t num_gates;
  Matrix w;
  const float* x;
  const float* weight;
  void* normed;
  void* gate_up;
  void* gated;
};

TEST_P(LinearTest, NormAndActivationAreTheSameWithAProductBetweenThem) {
  std::mt19937 random(5);
  for (const int32_t rows : {1, 3}) {
    Step step(random, std::vector<SequenceShape>(rows, {5, 1}));
    step.num_decode = rows;
    for (const int32_t width : {8, 72, 4096, 5128}) {
      for (const int32_t gates : {8, 48}) {
        SCOPED_TRACE(::testing::Message() << rows << " rows, " << width << ", " << gates);
        Device device(GetParam());
        const Neighbourhood layer(device, random, rows, width, gates);
        device->BeginStep(step.Layout());
        layer.Normalize();
        device->Sync();
        layer.Multiply();
        device->Sync();
        layer.Activate();
        const Values expected = layer.Results();
        for (int time = 0; time < 3; ++time) {  // the third is what repeated steps run
          layer.Clear();
          device->BeginStep(step.Layout());
          layer.Normalize();
          layer.Multiply();
          layer.Activate();
          ExpectSameBits(layer.Results(), expected);
        }
      }
    }
  }
}

class LinearThreadsTest : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, LinearThreadsTest, ::testing::Values(DType::kBF16, DType::kQ4_1),
                         [](const auto& info) { return TypeName(info.param); });

TEST_P(LinearThreadsTest, ThreadsDoNotChangeAProduct) {
  std::mt19937 random(3);
  for (const int64_t rows : {1, 6, 65}) {
    const Product product(random, {rows, 320, {200, 111}}, GetParam(), DType::kF32);
    Device one(MakeCpuKernels(1));
    const auto run = [&](Device& d) {
      return product.Run(d, product.weights.LoadInto(d), MatMulOut::kF32, true);
    };
    const Values expected = run(one);
    for (const int threads : {2, 3, 5}) {
      Device several(MakeCpuKernels(threads));
      ExpectSameBits(run(several), expected);
    }
  }
}

TEST_P(LinearDeathTest, RefusesToStackPartsThatDiffer) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const std::vector<std::byte> zeros(4096);
  const auto load = [&](const HostMatrix& second) {
    const HostMatrix parts[] = {{zeros.data(), 2, 64, DType::kQ4_0}, second};
    Device(GetParam())->LoadMatrix(parts);
  };
  load({zeros.data(), 1, 64, DType::kQ4_0});
  EXPECT_DEATH(load({zeros.data(), 1, 64, DType::kQ4_1}), "check failed");
  EXPECT_DEATH(load({zeros.data(), 1, 32, DType::kQ4_0}), "check failed");
}

TEST_P(LinearTest, EmbedCopiesRowsAsTheyAreKept) {
  std::mt19937 random(4);
  const Step step(random, MixedShapes(), 53);
  for (const DType type : WeightTypes()) {
    for (const int64_t cols : {int64_t{1}, int64_t{75}, int64_t{768}}) {
      if (cols % BlockOf(type).elements != 0) continue;
      SCOPED_TRACE(TypeName(type) + " " + std::to_string(cols));
      Device device(GetParam());
      const Weights table(random, type, {50, 3}, cols);
      float* out = device.PlaceFloats(Values(step.num_tokens() * cols));
      device->BeginStep(step.Layout());
      device->Embed({.table = table.LoadInto(device), .out = out});
      const Values values = AsKept(GetParam().weight_type, table.values, cols);
      Values expected;
      for (const int32_t token : step.tokens) {
        const auto row = values.begin() + token * cols;
        expected.insert(expected.end(), row, row + cols);
      }
      ExpectSameBits(device.ReadFloats(out, step.num_tokens() * cols), expected);
    }
  }
}

}  // namespace
}  // namespace everlong
