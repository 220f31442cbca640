#include "server/pending_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace everlong {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

OutputEvent Output(int32_t sample, const std::string& text, int32_t token) {
  return {.sample = sample, .text = text, .token_ids = {token}};
}

PrefillEvent Progress(int64_t done, int64_t total, int num_logprobs = 0) {
  PrefillEvent event = {.done_tokens = done, .total_tokens = total};
  for (int i = 0; i < num_logprobs; ++i) {
    event.prompt_logprobs.push_back({.chosen = {i, -1.0f}, .top = {{i, -1.0f}, {7, -2.0f}}});
  }
  return event;
}

TEST(PendingEventsTest, NothingWaitsAtFirst) {
  PendingEvents pending;
  EXPECT_FALSE(pending.Take(kStart).has_value());
  EXPECT_EQ(pending.bytes(), 0u);
}

TEST(PendingEventsTest, OutputOfASampleGrowsWhileItWaits) {
  PendingEvents pending;
  pending.Add(Output(0, "ab", 1));
  pending.Add(Output(1, "x", 2));
  OutputEvent with_logprob = Output(0, "c", 3);
  with_logprob.logprobs.push_back({.chosen = {3, -0.5f}, .top = {{3, -0.5f}}});
  pending.Add(with_logprob);
  pending.Add(SampleFinishedEvent{.sample = 1, .reason = FinishReason::kLength});
  pending.Add(Output(0, "", 4));

  const auto first = pending.Take(kStart);
  ASSERT_TRUE(first->has_output());
  EXPECT_EQ(first->output().sample(), 0);
  EXPECT_EQ(first->output().text(), "abc");
  EXPECT_EQ(first->output().token_ids_size(), 3);
  EXPECT_EQ(first->output().token_ids(2), 4);
  ASSERT_EQ(first->output().logprobs_size(), 1);
  EXPECT_EQ(first->output().logprobs(0).chosen().logprob(), -0.5f);
  EXPECT_EQ(pending.Take(kStart)->output().text(), "x");
  EXPECT_EQ(pending.Take(kStart)->sample_finished().sample(), 1);
  EXPECT_FALSE(pending.Take(kStart).has_value());
  EXPECT_EQ(pending.bytes(), 0u);
}

TEST(PendingEventsTest, BytesAreThoseOnTheWireAndTokensDoNotAddEntries) {
  PendingEvents pending;
  for (int i = 0; i < 1000; ++i) pending.Add(Output(0, "word ", i % 100));
  EXPECT_GT(pending.bytes(), 6000u);
  EXPECT_LT(pending.bytes(), 20000u);
  EXPECT_EQ(pending.Take(kStart)->output().token_ids_size(), 1000);
  EXPECT_FALSE(pending.Take(kStart).has_value());
}

TEST(PendingEventsTest, ProgressComesAtOnceThenEachSecondAndAtTheEnd) {
  PendingEvents pending;
  pending.Add(Progress(10, 100));
  EXPECT_EQ(pending.Take(kStart)->prefill().done_tokens(), 10);
  pending.Add(Progress(20, 100));
  EXPECT_FALSE(pending.Take(kStart + absl::Milliseconds(400)).has_value());
  pending.Add(Progress(30, 100));
  EXPECT_FALSE(pending.Take(kStart + absl::Milliseconds(999)).has_value());
  pending.Add(Progress(40, 100));
  EXPECT_EQ(pending.Take(kStart + absl::Seconds(1))->prefill().done_tokens(), 40);
  pending.Add(Progress(50, 100));
  EXPECT_FALSE(pending.Take(kStart + absl::Milliseconds(1001)).has_value());
  pending.Add(Progress(100, 100));
  EXPECT_EQ(pending.Take(kStart + absl::Milliseconds(1002))->prefill().done_tokens(), 100);
}

TEST(PendingEventsTest, HeldProgressGoesBeforeWhatFollowsIt) {
  PendingEvents pending;
  pending.Add(Progress(10, 100));
  pending.Take(kStart);
  pending.Add(Progress(20, 100));
  pending.Add(FinishedEvent{});
  EXPECT_EQ(pending.Take(kStart)->prefill().done_tokens(), 20);
  EXPECT_TRUE(pending.Take(kStart)->has_finished());
}

TEST(PendingEventsTest, PromptLogprobsAreNeverHeldAndNeverLost) {
  PendingEvents pending;
  pending.Add(Progress(10, 100, 9));
  EXPECT_EQ(pending.Take(kStart)->prefill().prompt_logprobs_size(), 9);
  pending.Add(Progress(20, 100, 10));
  pending.Add(Progress(30, 100, 10));
  const auto event = pending.Take(kStart);
  EXPECT_EQ(event->prefill().done_tokens(), 30);
  ASSERT_EQ(event->prefill().prompt_logprobs_size(), 20);
  EXPECT_EQ(event->prefill().prompt_logprobs(19).chosen().token(), 9);
  EXPECT_EQ(event->prefill().prompt_logprobs(0).top(1).token(), 7);
}

TEST(PendingEventsTest, MessagesStayWellBelowWhatClientsAccept) {
  PendingEvents pending;
  PrefillEvent event = Progress(100000, 100000, 100000);
  for (PositionLogprobs& position : event.prompt_logprobs) position.top.resize(kMaxTop);
  pending.Add(event);
  int positions = 0;
  while (const auto message = pending.Take(kStart)) {
    EXPECT_LT(message->ByteSizeLong(), 2u << 20);
    positions += message->prefill().prompt_logprobs_size();
  }
  EXPECT_EQ(positions, 100000);
}

TEST(PendingEventsTest, AcceptedAndFinishedSayWhatTheRequestWas) {
  PendingEvents pending;
  pending.SetSubject({.model = "m", .prompt_tokens = 12, .num_samples = 2});
  pending.Add(AcceptedEvent{.id = 5, .queue_position = 3, .warning = "far"});
  pending.Add(FinishedEvent{.usage = {.prompt_tokens = 12, .cached_tokens = 4, .output_tokens = 10},
                            .timings = {.queue = absl::Milliseconds(1500),
                                        .prefill = absl::Seconds(2),
                                        .first_token = absl::Seconds(3),
                                        .decode = absl::Seconds(8)}});
  const auto accepted = pending.Take(kStart)->accepted();
  EXPECT_EQ(accepted.request_id(), 5u);
  EXPECT_EQ(accepted.model(), "m");
  EXPECT_EQ(accepted.prompt_tokens(), 12);
  EXPECT_EQ(accepted.warning(), "far");
  EXPECT_EQ(accepted.queue_position(), 3);
  const auto finished = pending.Take(kStart)->finished();
  EXPECT_EQ(finished.usage().cached_tokens(), 4);
  EXPECT_EQ(finished.timings().queue().seconds(), 1);
  EXPECT_EQ(finished.timings().queue().nanos(), 500000000);
  // Each sample had four tokens after its first, in eight seconds.
  EXPECT_EQ(finished.timings().per_token().seconds(), 2);
}

TEST(PendingEventsTest, FinishedSaysWhatAttentionRead) {
  PendingEvents pending;
  pending.Add(FinishedEvent{.attention = {.decode_steps = 8,
                                          .attended_ratio = 0.25,
                                          .refreshes = {1, 2, 4, 0},
                                          .selected_blocks = 100,
                                          .reused_blocks = 75,
                                          .compared_tokens = 2,
                                          .fidelity = {{}, {.recall = 0.5, .error = 0.125}}}});
  pending.Add(FinishedEvent{});
  const auto use = pending.Take(kStart)->finished().attention();
  EXPECT_EQ(use.attended_ratio(), 0.25);
  EXPECT_THAT(use.stage_refreshes(), ::testing::ElementsAre(1, 2, 4));
  EXPECT_EQ(use.hit_ratio(), 0.75);
  EXPECT_EQ(use.fidelity().tokens(), 2);
  ASSERT_EQ(use.fidelity().layers_size(), 2);
  EXPECT_EQ(use.fidelity().layers(0).recall(), 1.0);
  EXPECT_EQ(use.fidelity().layers(1).recall(), 0.5);
  EXPECT_EQ(use.fidelity().layers(1).error(), 0.125);
  EXPECT_FALSE(pending.Take(kStart)->finished().has_attention());
}

TEST(PendingEventsTest, TimePerTokenIsAbsentBelowTwoTokens) {
  PendingEvents pending;
  pending.Add(FinishedEvent{.usage = {.output_tokens = 1}});
  EXPECT_FALSE(pending.Take(kStart)->finished().timings().has_per_token());
}

TEST(PendingEventsTest, SampleFinishedSaysWhatStoppedIt) {
  PendingEvents pending;
  pending.Add(
      SampleFinishedEvent{.sample = 2, .reason = FinishReason::kStopString, .stop_string = "x"});
  pending.Add(
      SampleFinishedEvent{.sample = 3, .reason = FinishReason::kStopToken, .stop_token = 9});
  pending.Add(SampleFinishedEvent{.sample = 4, .reason = FinishReason::kLength});
  auto event = pending.Take(kStart)->sample_finished();
  EXPECT_EQ(event.reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(event.stop_string(), "x");
  event = pending.Take(kStart)->sample_finished();
  EXPECT_EQ(event.reason(), v1::FINISH_REASON_STOP_TOKEN);
  EXPECT_EQ(event.stop_token(), 9);
  event = pending.Take(kStart)->sample_finished();
  EXPECT_EQ(event.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(event.stopped_by_case(), v1::SampleFinished::STOPPED_BY_NOT_SET);
}

}  // namespace
}  // namespace everlong
