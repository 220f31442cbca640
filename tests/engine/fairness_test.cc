// Who waits for whom.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using FairnessTest = EngineTest;

TEST_F(FairnessTest, ShortRequestWaitsForAtMostOneChunkOfALongOne) {
  auto long_one = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 1000), 4));
  engine_->Step();
  auto short_one = SubmitTo(*engine_, GreedyRequest(RandomPrompt(2, 30), 4));
  engine_->Step();
  EXPECT_EQ(short_one->tokens().size(), 1u);
  EXPECT_LT(long_one->prefill.back().done_tokens, 1000);
}

TEST_F(FairnessTest, HigherPriorityStartsFirst) {
  EngineOptions options = SmallOptions();
  options.max_running = 1;
  Restart(options);
  auto low = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 4));
  Request urgent = GreedyRequest(RandomPrompt(2, 10), 4);
  urgent.priority = 1;
  auto high = SubmitTo(*engine_, urgent);
  while (!high->finished()) engine_->Step();
  EXPECT_TRUE(low->outputs.empty());
  RunToEnd(*engine_);
  EXPECT_TRUE(low->end().status.ok());
}

TEST_F(FairnessTest, BackloggedReaderPausesOnlyItsOwnRequest) {
  auto slow = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 40), 20));
  auto quick = SubmitTo(*engine_, GreedyRequest(RandomPrompt(2, 40), 20));
  engine_->Step();
  slow->backlogged = true;
  while (!quick->finished()) ASSERT_TRUE(engine_->Step());
  EXPECT_EQ(slow->tokens().size(), 1u);
  EXPECT_FALSE(engine_->Step());
  slow->backlogged = false;
  RunToEnd(*engine_);
  EXPECT_EQ(slow->tokens().size(), 20u);
}

TEST_F(FairnessTest, BackloggedReadersDelayNobodyEvenWhenTheyHoldAllPlaces) {
  EngineOptions options = SmallOptions();
  options.max_running = 2;
  Restart(options);
  const Request request = GreedyRequest(RandomPrompt(1, 40), 20);
  std::vector<std::shared_ptr<RecordingSink>> slow = {SubmitTo(*engine_, request),
                                                      SubmitTo(*engine_, request)};
  engine_->Step();
  for (auto& sink : slow) sink->backlogged = true;
  auto quick = SubmitTo(*engine_, GreedyRequest(RandomPrompt(2, 40), 20));
  for (int step = 0; step < 25; ++step) engine_->Step();
  EXPECT_TRUE(quick->finished());
  for (auto& sink : slow) sink->backlogged = false;
  RunToEnd(*engine_);
  for (auto& sink : slow) {
    EXPECT_EQ(sink->tokens(), OutputAlone(SmallOptions(), "reference", request));
  }
}

}  // namespace
}  // namespace everlong
