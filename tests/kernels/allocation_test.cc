// What a decode step allocates once every buffer has its size: nothing, on any thread.
#include <gtest/gtest.h>

#include "tests/count_allocations.h"
#include "tests/kernels/decode_step.h"

namespace everlong {
namespace {

class AllocationTest : public ::testing::TestWithParam<Backend> {
 protected:
  // One sequence in its first pages, one that completes a page, and three long ones.
  DecodeInputs inputs_{DType::kBF16, {30, 127, 2000, 1500, 1800}};
  Device device_{GetParam()};
  DecodeStep step_{device_, inputs_};
};
INSTANTIATE_TEST_SUITE_P(Backends, AllocationTest, ::testing::ValuesIn(BackendsBesideReference()),
                         [](const auto& info) { return info.param.name; });

// What a row asks of the sampler must not matter: the first steps ask for little.
TEST_P(AllocationTest, ADecodeStepAllocatesNothing) {
  for (int i = 0; i < 2; ++i) step_.Run({.adjust_end = 2});
  const int64_t before = NumAllocations();
  step_.Run({.adjust_end = 1});
  step_.Run({.temperature = 1.0f, .top_p = 0.99f, .num_top = DecodeStep::kTop, .adjust_end = 2});
  step_.Run({.temperature = 1.0f, .top_k = 400});
  EXPECT_EQ(NumAllocations(), before);
}

// Other processes may use the device too, so that some of many attempts has to see no change.
TEST_P(AllocationTest, DecodeStepsLeaveTheDevicesMemoryAsItIs) {
  if (!device_->memory()) GTEST_SKIP() << "it has no memory of its own";
  for (int i = 0; i < 3; ++i) step_.Run({.temperature = 1.0f});
  for (int attempt = 0; attempt < 200; ++attempt) {
    const int64_t before = device_->memory()->free;
    for (int i = 0; i < 3; ++i) step_.Run({.temperature = 1.0f});
    if (device_->memory()->free == before) return;
  }
  ADD_FAILURE() << "free memory changes with every 3 steps";
}

}  // namespace
}  // namespace everlong
