// RmsNorm, GatedActivation and device memory.
#include <cmath>
#include <cstring>
#include <iostream>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/device.h"
#include "tests/kernels/step.h"

namespace everlong {
namespace {

std::string BackendName(const ::testing::TestParamInfo<Backend>& info) {
  return info.param.name;
}

class ElementwiseTest : public ::testing::TestWithParam<Backend> {};
INSTANTIATE_TEST_SUITE_P(Backends, ElementwiseTest, ::testing::ValuesIn(Backends()), BackendName);

// The values of row `row`.
Values Row(const Values& values, int64_t row, int64_t width) {
  return {values.begin() + row * width, values.begin() + (row + 1) * width};
}

TEST_P(ElementwiseTest, RmsNormFollowsItsDefinition) {
  std::mt19937 random(1);
  for (const int64_t width : {1, 8, 33, 64, 80, 576, 577, 4096}) {
    for (const float scale : {1e-4f, 1.0f, 300.0f}) {
      SCOPED_TRACE(::testing::Message() << "width " << width << ", scale " << scale);
      constexpr int64_t kRows = 5;
      Device device(GetParam());
      const Values x = RandomValues(random, kRows * width, DType::kF32, scale);
      const Values weight = RandomValues(random, width);
      void* out = device.PlaceActivations(Values(x.size()));
      device->RmsNorm({.x = device.PlaceFloats(x),
                       .weight = device.PlaceFloats(weight),
                       .out = out,
                       .rows = static_cast<int32_t>(kRows),
                       .width = static_cast<int32_t>(width),
                       .eps = 1e-5f});
      const Values all = device.ReadActivations(out, kRows * width);
      for (int64_t r = 0; r < kRows; ++r) {
        ExpectNormalized(Row(all, r, width), Row(x, r, width), weight, 1e-5f,
                         device.activation_type());
      }
    }
  }
}

TEST_P(ElementwiseTest, RmsNormGathersOutputRows) {
  std::mt19937 random(2);
  const Step step(random, MixedShapes());
  constexpr int64_t kWidth = 24;
  Device device(GetParam());
  const Values x = RandomValues(random, step.num_tokens() * kWidth);
  const Values weight = RandomValues(random, kWidth);
  float* x_device = device.PlaceFloats(x);
  float* weight_device = device.PlaceFloats(weight);
  device->BeginStep(step.Layout());
  const auto num_outputs = static_cast<int32_t>(step.output_rows.size());
  ASSERT_GT(num_outputs, 8);
  for (const int32_t first : {0, 3, num_outputs - 1}) {
    const int64_t rows = std::min(num_outputs - first, 6);
    void* out = device.PlaceActivations(Values(rows * kWidth));
    device->RmsNorm({.x = x_device,
                     .weight = weight_device,
                     .out = out,
                     .rows = static_cast<int32_t>(rows),
                     .width = static_cast<int32_t>(kWidth),
                     .first_output = first,
                     .eps = 1e-6f});
    const Values all = device.ReadActivations(out, rows * kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      ExpectNormalized(Row(all, r, kWidth), Row(x, step.output_rows[first + r], kWidth), weight,
                       1e-6f, device.activation_type());
    }
  }
}

// silu(g) = g / (1 + e), e = exp(-g): the share of error of e reaches the quotient times
// e / (1 + e) < 1; sum, quotient and products round once each. Where exp(-g) exceeds the range of
// f32, or its inverse the normal range, silu may come out as 0 instead of up to 89 / 2^126.
TEST_P(ElementwiseTest, GatedActivationFollowsItsDefinition) {
  std::mt19937 random(3);
  for (const int64_t width : {1, 16, 77, 1536}) {
    constexpr int64_t kRows = 6;
    Device device(GetParam());
    Values in = RandomValues(random, kRows * 2 * width, DType::kF32, 4.0);
    const Values extremes = {0.0f,   -0.0f,  20.0f,   -20.0f, 87.5f,
                             -87.5f, 100.0f, -100.0f, 1e30f,  -1e30f};
    for (size_t i = 0; i < extremes.size(); ++i) in[i * 7 % width] = extremes[i];
    in = RoundTo(device.activation_type(), in);
    void* out = device.PlaceActivations(Values(kRows * width));
    device->GatedActivation({.gate_up = device.PlaceActivations(in),
                             .out = out,
                             .rows = static_cast<int32_t>(kRows),
                             .width = static_cast<int32_t>(width)});
    Values expected;
    std::vector<double> bound;
    for (int64_t i = 0; i < kRows * width; ++i) {
      const float* gate = in.data() + i / width * 2 * width + i % width;
      const double exact = gate[0] / (1.0 + std::exp(-static_cast<double>(gate[0]))) * gate[width];
      expected.push_back(static_cast<float>(exact));
      bound.push_back(Gamma(kExpRoundings + 4) * std::abs(exact) +
                      RoundingError(device.activation_type(), exact) +
                      89 * 0x1p-126 * std::max(1.0f, std::abs(gate[width])));
    }
    ExpectWithin(device.ReadActivations(out, kRows * width), expected, bound);
  }
}

class MemoryTest : public ::testing::TestWithParam<Backend> {};
INSTANTIATE_TEST_SUITE_P(Backends, MemoryTest, ::testing::ValuesIn(Backends()), BackendName);

TEST_P(MemoryTest, IsAlignedZeroedAndKeepsWhatIsUploaded) {
  Device device(GetParam());
  std::vector<void*> blocks;
  for (const int64_t bytes : {1, 63, 64, 1000, 1 << 20}) {
    void* block = device->Allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
    EXPECT_EQ(device.Read(block, bytes), std::vector<std::byte>(bytes));
    const std::vector<std::byte> pattern(bytes, std::byte{0xA5});
    device->Upload(block, pattern.data(), bytes);
    EXPECT_EQ(device.Read(block, bytes), pattern);
    blocks.push_back(block);
  }
  for (void* block : blocks) device->Free(block);
  void* again = device->Allocate(1000);
  EXPECT_EQ(device.Read(again, 1000), std::vector<std::byte>(1000));
  device->Free(again);
}

TEST_P(MemoryTest, MoreThanThereIsThrowsBadAlloc) {
  Device device(GetParam());
  EXPECT_THROW(device->Allocate(int64_t{1} << 60), std::bad_alloc);
}

TEST(CudaModuleTest, IsThereOrSaysWhyNot) {
  std::string why;
  const std::unique_ptr<Kernels> kernels = MakeCudaKernels(DType::kBF16, &why);
  EXPECT_EQ(kernels == nullptr, !why.empty());
  std::cout << "CUDA: " << (why.empty() ? "there is a GPU" : why) << "\n";
}

}  // namespace
}  // namespace everlong
