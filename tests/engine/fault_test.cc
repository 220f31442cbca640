// Memory that runs out and devices that fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

TEST(FaultTest, MemoryThatRunsOutInAStepEndsTheRequestsOfTheStepOnly) {
  std::atomic<bool> fail{false};
  auto engine = MakeTinyEngine(SmallOptions(), std::make_unique<HookedKernels>([&] {
                                 if (fail) throw std::bad_alloc();
                               }));
  Request request = GreedyRequest(RandomPrompt(1, 100), 40);
  request.num_samples = 3;
  auto first = SubmitTo(*engine, request);
  auto paused = SubmitTo(*engine, GreedyRequest(RandomPrompt(2, 100), 40));
  for (int step = 0; step < 5; ++step) engine->Step();
  EXPECT_FALSE(paused->tokens().empty());
  paused->backlogged = true;
  fail = true;
  EXPECT_FALSE(engine->Step());
  fail = false;
  ASSERT_TRUE(first->finished());
  EXPECT_EQ(first->end().status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(first->end().status.message()), HasSubstr("memory ran out"));
  EXPECT_FALSE(paused->finished());
  EXPECT_TRUE(engine->Healthy());

  paused->backlogged = false;
  auto later = SubmitTo(*engine, request);
  RunToEnd(*engine);
  EXPECT_EQ(later->tokens(2), OutputAlone(SmallOptions(), "reference", request, 2));
  EXPECT_EQ(paused->tokens(),
            OutputAlone(SmallOptions(), "reference", GreedyRequest(RandomPrompt(2, 100), 40)));
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(FaultTest, DeviceFaultEndsEveryRequestAndTurnsUnhealthy) {
  std::atomic<bool> fail{false};
  auto engine = MakeTinyEngine(SmallOptions(), std::make_unique<HookedKernels>([&] {
                                 if (fail) throw DeviceError("an injected fault");
                               }));
  auto first = SubmitTo(*engine, GreedyRequest(RandomPrompt(1, 100), 40));
  auto second = SubmitTo(*engine, GreedyRequest(RandomPrompt(2, 300), 40));
  engine->Step();
  EXPECT_TRUE(engine->Healthy());
  fail = true;
  EXPECT_FALSE(engine->Step());
  EXPECT_FALSE(engine->Healthy());
  for (const auto& sink : {first, second}) {
    ASSERT_TRUE(sink->finished());
    EXPECT_EQ(sink->end().status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(sink->end().status.message()), HasSubstr("injected"));
  }
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
  const absl::Status refused = Submitted(*engine, GreedyRequest(RandomPrompt(1, 10), 4));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
}

// A backend that fails between steps, where selections' counts are cleared.
class FailingUploads final : public HookedKernels {
 public:
  explicit FailingUploads(std::function<void()> upload)
      : HookedKernels([] {}), upload_(std::move(upload)) {}
  void Upload(void* to, const void* from, int64_t bytes) override {
    upload_();
    HookedKernels::Upload(to, from, bytes);
  }

 private:
  std::function<void()> upload_;
};

// Lets the first upload of a request, which is between steps, call `fail`.
void ExpectThatFailingBetweenStepsEndsAll(const std::function<void()>& fail) {
  std::atomic<bool> failing{false};
  auto engine = MakeTinyEngine(SmallOptions(), std::make_unique<FailingUploads>([&] {
                                 if (failing) fail();
                               }));
  failing = true;
  Request request = GreedyRequest(RandomPrompt(1, 300), 4);
  request.attention = SparseAttention("default");
  auto sink = SubmitTo(*engine, request);
  EXPECT_FALSE(engine->Step());
  ASSERT_TRUE(sink->finished());
  EXPECT_EQ(sink->end().status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(engine->Healthy());
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(FaultTest, DeviceFaultsOutsideTheModelCountToo) {
  ExpectThatFailingBetweenStepsEndsAll([] { throw DeviceError("an injected fault"); });
}

TEST(FaultTest, MemoryThatRunsOutBetweenStepsEndsEveryRequest) {
  ExpectThatFailingBetweenStepsEndsAll([] { throw std::bad_alloc(); });
}

}  // namespace
}  // namespace everlong
