// What client threads and the engine's tell each other, without an engine.
#include "engine/inbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace everlong {
namespace {

std::unique_ptr<ActiveRequest> AnyRequest() {
  return std::make_unique<ActiveRequest>(
      ActiveRequest{.request = {.prompt = {1, 2, 3}}, .submitted = absl::FromUnixSeconds(1000)});
}

TEST(InboxTest, CommandsComeOnceAndInOrder) {
  Inbox inbox(8, EngineStats());
  const RequestId first = *inbox.Submit(AnyRequest());
  const RequestId second = *inbox.Submit(AnyRequest());
  inbox.Cancel(first);
  const Inbox::Commands commands = inbox.Take();
  ASSERT_EQ(commands.submitted.size(), 2u);
  EXPECT_EQ(commands.submitted[0]->id, first);
  EXPECT_EQ(commands.submitted[1]->id, second);
  EXPECT_EQ(commands.cancelled, std::vector<RequestId>{first});
  const Inbox::Commands again = inbox.Take();
  EXPECT_TRUE(again.submitted.empty() && again.cancelled.empty());
}

TEST(InboxTest, RequestsCountAsWaitingThenRunningThenNotAtAll) {
  Inbox inbox(1, EngineStats());
  ASSERT_TRUE(inbox.Submit(AnyRequest()).ok());
  EXPECT_EQ(inbox.Stats().requests_waiting, 1);
  EXPECT_EQ(inbox.Submit(AnyRequest()).status().code(), absl::StatusCode::kResourceExhausted);
  inbox.OnWaited();
  EXPECT_EQ(inbox.Stats().requests_waiting, 0);
  EXPECT_EQ(inbox.Stats().requests_running, 1);
  EXPECT_FALSE(inbox.Idle());
  inbox.Publish(EngineStats(), 1);
  EXPECT_EQ(inbox.Stats().requests_running, 0);
  EXPECT_TRUE(inbox.Idle());
}

TEST(InboxTest, RefusesWithTheReasonGiven) {
  Inbox inbox(8, EngineStats());
  inbox.Refuse("draining");
  EXPECT_EQ(inbox.Submit(AnyRequest()).status(), absl::UnavailableError("draining"));
  EXPECT_TRUE(inbox.Idle());
}

// An engine that has nothing to do sleeps until each of these.
TEST(InboxTest, EveryCommandWakesTheEngine) {
  Inbox inbox(8, EngineStats());
  std::atomic<int> taken{0};
  std::thread engine([&] {
    bool busy = true;  // for a first look
    while (inbox.WaitForWork(busy)) {
      const Inbox::Commands commands = inbox.Take();
      for (size_t i = 0; i < commands.submitted.size(); ++i) inbox.OnWaited();
      inbox.Publish(EngineStats(), commands.submitted.size());
      taken += static_cast<int>(commands.submitted.size() + commands.cancelled.size());
      taken.notify_all();
      busy = false;
    }
  });
  ASSERT_TRUE(inbox.Submit(AnyRequest()).ok());
  taken.wait(0);
  inbox.Cancel(1);
  taken.wait(1);
  EXPECT_EQ(taken, 2);
  EXPECT_TRUE(inbox.Idle());
  inbox.Stop();
  engine.join();
  EXPECT_FALSE(inbox.WaitForWork(true));
}

}  // namespace
}  // namespace everlong
