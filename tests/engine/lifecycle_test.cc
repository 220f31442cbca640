// How requests begin and end, whoever ends them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;
using LifecycleTest = EngineTest;

TEST_F(LifecycleTest, CancelFreesEverythingWithinOneStep) {
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine_->Submit(GreedyRequest(RandomPrompt(1, 900), 50), sink);
  engine_->Step();
  EXPECT_GT(engine_->Stats().kv_pages_used, 0);
  engine_->Cancel(*id);
  engine_->Cancel(*id);
  engine_->Cancel(12345);
  engine_->Step();
  ASSERT_TRUE(sink->finished());
  EXPECT_EQ(sink->end().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_->Stats().kv_pages_used, 0);
  EXPECT_TRUE(engine_->Idle());
}

TEST_F(LifecycleTest, DeadlineEndsRunningAndWaitingRequests) {
  Request request = GreedyRequest(RandomPrompt(1, 500), 100);
  request.deadline = now_ + absl::Seconds(5);
  auto running = SubmitTo(*engine_, request);
  engine_->Step();
  now_ += absl::Seconds(4);
  engine_->Step();
  EXPECT_FALSE(running->finished());
  auto late = SubmitTo(*engine_, request);
  now_ += absl::Seconds(1);
  engine_->Step();
  ASSERT_TRUE(running->finished() && late->finished());
  EXPECT_EQ(running->end().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late->end().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late->end().timings.queue, absl::Seconds(1));
  EXPECT_EQ(engine_->Stats().kv_pages_used, 0);
  EXPECT_EQ(engine_->Stats().failures.at(absl::StatusCode::kDeadlineExceeded), 2u);
}

TEST_F(LifecycleTest, DeadlineThatNoPrefillCanMeetIsRefusedWithThePrediction) {
  EngineOptions options = SmallOptions();
  options.clock = [this] { return now_ += absl::Milliseconds(1); };
  engine_ = MakeTinyEngine(options, MakeReferenceKernels());
  Request request = GreedyRequest(RandomPrompt(1, 1000), 1);
  request.deadline = now_ + absl::Seconds(1);
  SubmitTo(*engine_, request);  // nothing is measured yet
  RunToEnd(*engine_);
  // Steps of 128 tokens took a millisecond each, so 1000 tokens take 7.8 ms.
  EXPECT_EQ(engine_->Stats().peak_prefill_rate, 128000.0);
  request.deadline = now_ + absl::Milliseconds(8);
  const absl::Status refused = Submitted(*engine_, request);
  EXPECT_EQ(refused.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("at least 0.008 s"));
  request.deadline = now_ + absl::Milliseconds(10);
  EXPECT_TRUE(Submitted(*engine_, request).ok());
  RunToEnd(*engine_);
}

TEST_F(LifecycleTest, DeadlineIsNotMistakenForTheCancelItCauses) {
  Request request = GreedyRequest(RandomPrompt(1, 500), 100);
  request.deadline = now_ + absl::Seconds(5);
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine_->Submit(request, sink);
  engine_->Step();
  now_ += absl::Seconds(5);
  engine_->Cancel(*id);
  engine_->Step();
  ASSERT_TRUE(sink->finished());
  EXPECT_EQ(sink->end().status.code(), absl::StatusCode::kDeadlineExceeded);
}

// Whoever is told of an end can see what it counted.
TEST_F(LifecycleTest, StatsAreCompleteWhenTheTerminalEventComes) {
  struct AskingSink : RecordingSink {
    void OnEvent(Event event) override {
      if (std::holds_alternative<FinishedEvent>(event)) stats = engine->Stats();
      RecordingSink::OnEvent(std::move(event));
    }
    Engine* engine;
    EngineStats stats;
  };
  auto sink = std::make_shared<AskingSink>();
  sink->engine = engine_.get();
  ASSERT_TRUE(engine_->Submit(GreedyRequest(RandomPrompt(1, 100), 5), sink).ok());
  RunToEnd(*engine_);
  EXPECT_EQ(sink->stats.output_tokens, 5u);
  EXPECT_EQ(sink->stats.kv_pages_used, 0);
  EXPECT_EQ(sink->stats.requests_running, 0);
  EXPECT_EQ(sink->stats.finished[static_cast<size_t>(FinishReason::kLength)], 1u);
}

TEST_F(LifecycleTest, SamplesThatFinishInTheSameStepCountAsOneRequest) {
  Request request = GreedyRequest(RandomPrompt(1, 100), 5);
  request.num_samples = 3;
  auto sink = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  EXPECT_EQ(sink->samples.size(), 3u);
  EXPECT_EQ(engine_->Stats().finished[static_cast<size_t>(FinishReason::kLength)], 1u);
}

TEST_F(LifecycleTest, WaitingRequestsAreBounded) {
  EngineOptions options = SmallOptions();
  options.max_waiting = 2;
  Restart(options);
  const Request request = GreedyRequest(RandomPrompt(1, 10), 4);
  SubmitTo(*engine_, request);
  SubmitTo(*engine_, request);
  const absl::Status refused = Submitted(*engine_, request);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("max_waiting is 2"));
  RunToEnd(*engine_);
  EXPECT_EQ(engine_->Stats().requests_waiting, 0);
  SubmitTo(*engine_, request);
  RunToEnd(*engine_);
}

TEST_F(LifecycleTest, DrainingRefusesAndFinishesWhatRuns) {
  auto sink = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 4));
  engine_->Drain();
  EXPECT_FALSE(engine_->Idle());
  const absl::Status refused = Submitted(*engine_, GreedyRequest(RandomPrompt(1, 10), 4));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  RunToEnd(*engine_);
  EXPECT_TRUE(sink->end().status.ok());
}

TEST_F(LifecycleTest, StopEndsRunningAndSubmittedRequests) {
  auto running = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 40));
  engine_->Step();
  auto submitted = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 40));
  engine_->Stop();
  EXPECT_EQ(running->end().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(submitted->end().status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace everlong
