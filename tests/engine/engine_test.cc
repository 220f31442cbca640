#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> OutputAlone(const EngineOptions& options, const std::string& backend,
                                 const Request& request, int32_t sample = 0) {
  auto engine = MakeTinyEngine(options, MakeKernels(backend));
  auto sink = SubmitTo(*engine, request);
  RunToEnd(*engine);
  EXPECT_TRUE(sink->finished() && sink->end().status.ok());
  return sink->tokens(sample);
}

class EngineBackendTest : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, EngineBackendTest, ::testing::Values("reference", "cpu"));

// Nothing of a request's output depends on anything but the request.
class EngineInvarianceTest : public EngineBackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, EngineInvarianceTest,
                         ::testing::Values("reference", "cpu", "phased"));

TEST_P(EngineBackendTest, EventsComeInOrderAndCountsAgree) {
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  auto sink = SubmitTo(*engine, GreedyRequest(RandomPrompt(1, 300), 12));
  RunToEnd(*engine);

  ASSERT_EQ(sink->accepted.size(), 1u);
  ASSERT_EQ(sink->terminal.size(), 1u);
  EXPECT_TRUE(std::is_sorted(sink->order.begin(), sink->order.end()));
  EXPECT_EQ(sink->prefill.back().done_tokens, 300);
  EXPECT_EQ(sink->prefill.size(), 3u);  // 128 tokens a step
  EXPECT_EQ(sink->tokens().size(), 12u);
  ASSERT_EQ(sink->samples.size(), 1u);
  EXPECT_EQ(sink->samples[0].reason, FinishReason::kLength);
  EXPECT_EQ(sink->end().usage.prompt_tokens, 300);
  EXPECT_EQ(sink->end().usage.output_tokens, 12);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.prompt_tokens, 300u);
  EXPECT_EQ(stats.output_tokens, 12u);
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(stats.finished[static_cast<size_t>(FinishReason::kLength)], 1u);
}

// The central promise: neither company nor chunk size changes a request's tokens.
void ExpectSameAloneAndInAnyBatch(const std::vector<Request>& requests,
                                  const std::string& backend) {
  std::vector<std::vector<int32_t>> alone;
  for (const Request& request : requests) {
    alone.push_back(OutputAlone(SmallOptions(), backend, request));
  }
  for (const int32_t max_batch_tokens : {72, 100, 333, 1024}) {
    EngineOptions options = SmallOptions();
    options.max_batch_tokens = max_batch_tokens;
    auto engine = MakeTinyEngine(options, MakeKernels(backend));
    const auto sinks = RunStaggered(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(sinks[i]->tokens(), alone[i]) << "request " << i << ", chunk " << max_batch_tokens;
    }
  }
}

TEST_P(EngineInvarianceTest, OutputIsTheSameAloneInAnyBatchWithAnyChunk) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 1 + 97 * i), 20));
    if (i % 2 == 1) requests.back().sampling = {.temperature = 0.9f, .top_p = 0.95f, .seed = i};
  }
  ExpectSameAloneAndInAnyBatch(requests, GetParam());
}

TEST_P(EngineInvarianceTest, PreemptionDoesNotChangeTheOutput) {
  EngineOptions options = SmallOptions();
  options.max_context = 640;
  options.kv_device_bytes = 12 * kTinyPageBytes;  // 768 tokens: one and a half of these requests
  auto engine = MakeTinyEngine(options, MakeKernels(GetParam()));
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint32_t i = 0; i < 3; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(40 + i, 200), 300));
    sinks.push_back(SubmitTo(*engine, requests.back()));
  }
  RunToEnd(*engine);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens(), OutputAlone(SmallOptions(), GetParam(), requests[i]));
  }
}

// Far more context than sinks, selection and window hold.
AttentionOverrides SparseAttention(const char* preset) {
  return {.mode = AttentionMode::kInfiniteHip,
          .preset = preset,
          .positions = PositionRule::kClipped,
          .budget = 64,
          .num_sinks = 16,
          .window = 64};
}

TEST_P(EngineInvarianceTest, SparseOutputIsTheSameAloneInAnyBatchWithAnyChunk) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 1 + 151 * i), 30));
    if (i > 0) requests.back().attention = SparseAttention(i % 2 == 0 ? "default" : "3k");
  }
  ExpectSameAloneAndInAnyBatch(requests, GetParam());
}

TEST_P(EngineInvarianceTest, SparseOutputSurvivesPreemptionAndSampling) {
  EngineOptions options = SmallOptions();
  options.max_context = 640;
  options.kv_device_bytes = 14 * kTinyPageBytes;
  auto engine = MakeTinyEngine(options, MakeKernels(GetParam()));
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint32_t i = 0; i < 3; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(40 + i, 250), 200));
    requests.back().attention = SparseAttention(i % 2 == 0 ? "default" : "3k");
    sinks.push_back(SubmitTo(*engine, requests.back()));
  }
  RunToEnd(*engine);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens(), OutputAlone(SmallOptions(), GetParam(), requests[i]));
  }
  requests[0].num_samples = 3;
  EXPECT_EQ(OutputAlone(SmallOptions(), GetParam(), requests[0]), sinks[0]->tokens());
}

// Largest difference of the prompt's log probabilities under two kinds of attention, in units of
// what rounding may add to sums over the context: its length times epsilon times their size.
double PromptDifference(const std::string& backend, const Request& a, const Request& b) {
  std::vector<double> logprobs[2];
  for (int which = 0; which < 2; ++which) {
    auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(backend));
    auto sink = SubmitTo(*engine, which == 0 ? a : b);
    RunToEnd(*engine);
    for (const PrefillEvent& event : sink->prefill) {
      for (const PositionLogprobs& position : event.prompt_logprobs) {
        logprobs[which].push_back(position.chosen.logprob);
      }
    }
    logprobs[which].push_back(sink->outputs.at(0).logprobs.at(0).chosen.logprob);
  }
  EXPECT_EQ(logprobs[0].size(), a.prompt.size());
  EXPECT_EQ(logprobs[0].size(), logprobs[1].size());
  double difference = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < logprobs[0].size(); ++i) {
    difference = std::max(difference, std::abs(logprobs[0][i] - logprobs[1][i]));
    size = std::max(size, std::abs(logprobs[0][i]));
  }
  return difference / (static_cast<double>(a.prompt.size()) * 0x1p-24 * size);
}

TEST_P(EngineBackendTest, WhereEverythingIsSelectedSparseIsDense) {
  Request dense = GreedyRequest(RandomPrompt(3, 700), 1);
  dense.prompt_logprobs = dense.logprobs = 0;
  for (const char* preset : {"default", "3k"}) {
    Request sparse = dense;
    sparse.attention = SparseAttention(preset);
    sparse.attention.positions = PositionRule::kTrue;
    EXPECT_GT(PromptDifference(GetParam(), dense, sparse), 100.0);
    sparse.attention.budget = 1024;
    EXPECT_LT(PromptDifference(GetParam(), dense, sparse), 1.0);
  }
}

TEST_P(EngineBackendTest, FinishedTellsWhatAttentionRead) {
  Request request = GreedyRequest(RandomPrompt(3, 800), 33);
  request.attention = SparseAttention("3k");
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  auto sink = SubmitTo(*engine, request);
  RunToEnd(*engine);
  const AttentionUse& use = sink->end().attention;
  EXPECT_EQ(use.decode_steps, 33);
  EXPECT_NEAR(use.attended_ratio, (16 + 64 + 64 + 8) / 816.0, 0.03);
  EXPECT_EQ(use.refreshes[0], 3);  // steps 0, 16, 32
  EXPECT_EQ(use.refreshes[1], 5);
  EXPECT_EQ(use.refreshes[2], 9);
  EXPECT_EQ(use.selected_blocks, 8 * 8 * 2 * 2);  // refreshes, blocks, layers, KV heads
  EXPECT_GT(use.reused_blocks, 0);
  EXPECT_LE(use.reused_blocks, use.selected_blocks);

  request.attention = {};
  auto dense = SubmitTo(*engine, request);
  RunToEnd(*engine);
  EXPECT_EQ(dense->end().attention.attended_ratio, 1.0);
  EXPECT_EQ(dense->end().attention.refreshes[0], 0);
}

TEST(EngineAttentionTest, RequestsAreWarnedOfPositionsThatTheModelDoesNotBear) {
  auto engine = MakeTinyEngine(SmallOptions(), MakeReferenceKernels());
  Request request = GreedyRequest(RandomPrompt(3, 100), 1);
  const auto warning = [&] {
    auto sink = SubmitTo(*engine, request);
    RunToEnd(*engine);
    return sink->accepted.at(0).warning;
  };
  EXPECT_EQ(warning(), "");
  request.attention = {.mode = AttentionMode::kInfiniteHip, .preset = "3k"};
  EXPECT_THAT(warning(), HasSubstr("3392 + apparent distance 3328"));
  request.attention.mode = AttentionMode::kAuto;  // dense: within the trained length
  EXPECT_EQ(warning(), "");
}

TEST_P(EngineInvarianceTest, SamplesShareThePromptAndDrawTheirOwnStreams) {
  Request request = GreedyRequest(RandomPrompt(7, 150), 10);
  request.sampling = {.temperature = 1.0f, .seed = 11};
  request.num_samples = 5;
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  auto sink = SubmitTo(*engine, request);
  int64_t most_pages = 0;
  while (!sink->finished()) {
    engine->Step();
    most_pages = std::max(most_pages, engine->Stats().kv_pages_used);
  }
  // Two whole pages are shared; each sample holds a third of its own.
  EXPECT_LE(most_pages, 2 + 5 + 1);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
  EXPECT_EQ(engine->Stats().prompt_tokens, 150u);
  std::set<std::vector<int32_t>> distinct;
  for (int32_t sample = 0; sample < 5; ++sample) {
    EXPECT_EQ(sink->tokens(sample).size(), 10u);
    distinct.insert(sink->tokens(sample));
  }
  EXPECT_EQ(distinct.size(), 5u);
  EXPECT_EQ(sink->samples.size(), 5u);
  request.num_samples = 1;
  EXPECT_EQ(sink->tokens(0), OutputAlone(SmallOptions(), GetParam(), request));
}

TEST_P(EngineBackendTest, PromptLogprobsScoreEveryTokenButTheFirst) {
  // The log probabilities of a generated continuation must equal those of the same tokens as
  // prompt.
  Request request = GreedyRequest(RandomPrompt(3, 90), 60);
  request.logprobs = 3;
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  auto generated = SubmitTo(*engine, request);
  RunToEnd(*engine);

  Request again = GreedyRequest(request.prompt, 1);
  const std::vector<int32_t> output = generated->tokens();
  again.prompt.insert(again.prompt.end(), output.begin(), output.end());
  again.prompt_logprobs = 3;
  auto scored = SubmitTo(*engine, again);
  RunToEnd(*engine);

  std::vector<PositionLogprobs> prompt;
  for (const PrefillEvent& event : scored->prefill) {
    prompt.insert(prompt.end(), event.prompt_logprobs.begin(), event.prompt_logprobs.end());
  }
  ASSERT_EQ(prompt.size(), again.prompt.size() - 1);
  for (size_t i = 0; i < generated->outputs.size(); ++i) {
    const PositionLogprobs& at_decode = generated->outputs[i].logprobs.at(0);
    const PositionLogprobs& at_prefill = prompt[request.prompt.size() - 1 + i];
    EXPECT_EQ(at_decode.chosen.token, at_prefill.chosen.token);
    EXPECT_EQ(at_decode.chosen.logprob, at_prefill.chosen.logprob);
    ASSERT_EQ(at_decode.top.size(), 3u);
    EXPECT_EQ(at_decode.top[0].token, at_decode.chosen.token);  // greedy
    EXPECT_GE(at_decode.top[0].logprob, at_decode.top[1].logprob);
    EXPECT_EQ(at_prefill.top[2].token, at_decode.top[2].token);
  }
}

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() { Restart(SmallOptions()); }

  void Restart(EngineOptions options) {
    options.clock = [this] { return now_; };
    engine_ = MakeTinyEngine(options, MakeReferenceKernels());
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, CancelFreesEverythingWithinOneStep) {
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

TEST_F(EngineTest, DeadlineEndsRunningAndWaitingRequests) {
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

TEST_F(EngineTest, DeadlineThatNoPrefillCanMeetIsRefusedWithThePrediction) {
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
  const auto refused = engine_->Submit(request, std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("at least 0.008 s"));
  request.deadline = now_ + absl::Milliseconds(10);
  EXPECT_TRUE(engine_->Submit(request, std::make_shared<RecordingSink>()).ok());
  RunToEnd(*engine_);
}

TEST_F(EngineTest, DeadlineIsNotMistakenForTheCancelItCauses) {
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
TEST_F(EngineTest, StatsAreCompleteWhenTheTerminalEventComes) {
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

TEST_F(EngineTest, SamplesThatFinishInTheSameStepCountAsOneRequest) {
  Request request = GreedyRequest(RandomPrompt(1, 100), 5);
  request.num_samples = 3;
  auto sink = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  EXPECT_EQ(sink->samples.size(), 3u);
  EXPECT_EQ(engine_->Stats().finished[static_cast<size_t>(FinishReason::kLength)], 1u);
}

TEST_F(EngineTest, ShortRequestWaitsForAtMostOneChunkOfALongOne) {
  auto long_one = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 1000), 4));
  engine_->Step();
  auto short_one = SubmitTo(*engine_, GreedyRequest(RandomPrompt(2, 30), 4));
  engine_->Step();
  EXPECT_EQ(short_one->tokens().size(), 1u);
  EXPECT_LT(long_one->prefill.back().done_tokens, 1000);
}

TEST_F(EngineTest, HigherPriorityStartsFirst) {
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

TEST_F(EngineTest, StopStringEndsTheOutputAndIsNotSent) {
  Request request = GreedyRequest(RandomPrompt(5, 40), 60);
  auto whole = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  const std::string text = whole->text();
  // A piece from the middle that does not start at a replacement character.
  size_t at = text.size() / 2;
  while (at < text.size() && (text[at] & 0x80) != 0) ++at;
  size_t end = at + 1;
  while (end < text.size() && end < at + 3 && (text[end] & 0x80) == 0) ++end;
  ASSERT_LT(end, text.size());
  request.stop = {"never\xf0\x9f\x98\x80", text.substr(at, end - at)};
  auto stopped = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  EXPECT_EQ(stopped->text(), text.substr(0, text.find(request.stop[1])));
  EXPECT_EQ(stopped->samples.at(0).reason, FinishReason::kStopString);
  EXPECT_EQ(stopped->samples.at(0).stop_string, request.stop[1]);
}

TEST_F(EngineTest, StopTokenEndsTheOutputAndMinOutputTokensForbidsIt) {
  Request request = GreedyRequest(RandomPrompt(5, 40), 30);
  auto whole = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  const std::vector<int32_t> tokens = whole->tokens();
  request.stop_token_ids = {tokens[6]};
  auto stopped = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[6]);
  EXPECT_EQ(stopped->tokens(), std::vector<int32_t>(tokens.begin(), first + 1));
  EXPECT_EQ(stopped->samples.at(0).stop_token, tokens[6]);

  request.min_output_tokens = 12;
  auto longer = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  const std::vector<int32_t> later = longer->tokens();
  ASSERT_GE(later.size(), 12u);
  EXPECT_EQ(std::count(later.begin(), later.begin() + 12, tokens[6]), 0);
}

TEST_F(EngineTest, EndOfSequenceEndsUnlessIgnored) {
  Request request = GreedyRequest(RandomPrompt(5, 40), 8);
  request.sampling.logit_bias = {{kTinyEnd, 100.0f}};
  request.ignore_eos = false;
  auto ended = SubmitTo(*engine_, request);
  request.ignore_eos = true;
  auto ignored = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  EXPECT_EQ(ended->tokens(), std::vector<int32_t>{kTinyEnd});
  EXPECT_EQ(ended->text(), "");
  EXPECT_EQ(ignored->tokens(), std::vector<int32_t>(8, kTinyEnd));
}

TEST_F(EngineTest, PenaltiesKeepTokensFromComingBack) {
  Request request = GreedyRequest(RandomPrompt(5, 40), 100);
  request.sampling.frequency_penalty = 2.0f;
  request.sampling.presence_penalty = 2.0f;
  request.sampling.repetition_penalty = 10.0f;
  auto sink = SubmitTo(*engine_, request);
  RunToEnd(*engine_);
  const std::vector<int32_t> tokens = sink->tokens();
  const std::set<int32_t> distinct(tokens.begin(), tokens.end());
  EXPECT_GT(distinct.size(), 90u);
}

TEST_F(EngineTest, BackloggedReaderPausesOnlyItsOwnRequest) {
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

TEST_F(EngineTest, BackloggedReadersDelayNobodyEvenWhenTheyHoldAllPlaces) {
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

TEST_F(EngineTest, WaitingRequestsAreBounded) {
  EngineOptions options = SmallOptions();
  options.max_waiting = 2;
  Restart(options);
  const Request request = GreedyRequest(RandomPrompt(1, 10), 4);
  SubmitTo(*engine_, request);
  SubmitTo(*engine_, request);
  const auto refused = engine_->Submit(request, std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("max_waiting is 2"));
  RunToEnd(*engine_);
  EXPECT_EQ(engine_->Stats().requests_waiting, 0);
  SubmitTo(*engine_, request);
  RunToEnd(*engine_);
}

TEST_F(EngineTest, DrainingRefusesAndFinishesWhatRuns) {
  auto sink = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 4));
  engine_->Drain();
  EXPECT_FALSE(engine_->Idle());
  const auto refused =
      engine_->Submit(GreedyRequest(RandomPrompt(1, 10), 4), std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  RunToEnd(*engine_);
  EXPECT_TRUE(sink->end().status.ok());
}

TEST_F(EngineTest, StopEndsRunningAndSubmittedRequests) {
  auto running = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 40));
  engine_->Step();
  auto submitted = SubmitTo(*engine_, GreedyRequest(RandomPrompt(1, 10), 40));
  engine_->Stop();
  EXPECT_EQ(running->end().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(submitted->end().status.code(), absl::StatusCode::kUnavailable);
}

TEST(EngineFaultTest, MemoryThatRunsOutInAStepEndsTheRequestsOfTheStepOnly) {
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

TEST(EngineFaultTest, DeviceFaultEndsEveryRequestAndTurnsUnhealthy) {
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
  const auto refused =
      engine->Submit(GreedyRequest(RandomPrompt(1, 10), 4), std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
}

// A backend that fails between steps, where selections' counts are cleared.
TEST(EngineFaultTest, DeviceFaultsOutsideTheModelCountToo) {
  class NoUploads final : public HookedKernels {
   public:
    explicit NoUploads(const std::atomic<bool>* fail) : HookedKernels([] {}), fail_(fail) {}
    void Upload(void* to, const void* from, int64_t bytes) override {
      if (*fail_) throw DeviceError("an injected fault");
      HookedKernels::Upload(to, from, bytes);
    }

   private:
    const std::atomic<bool>* fail_;
  };
  std::atomic<bool> fail{false};
  auto engine = MakeTinyEngine(SmallOptions(), std::make_unique<NoUploads>(&fail));
  fail = true;
  Request request = GreedyRequest(RandomPrompt(1, 300), 4);
  request.attention = SparseAttention("default");
  auto sink = SubmitTo(*engine, request);
  EXPECT_FALSE(engine->Step());
  ASSERT_TRUE(sink->finished());
  EXPECT_EQ(sink->end().status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(engine->Healthy());
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(EngineOptionsTest, SparseAttentionThatTheServerHasNoRoomForIsRefused) {
  EngineOptions options = SmallOptions();
  auto engine = MakeTinyEngine(options, MakeReferenceKernels());
  Request request = GreedyRequest(RandomPrompt(1, 10), 1);
  request.attention.budget = 8192;
  const auto large = engine->Submit(request, std::make_shared<RecordingSink>());
  EXPECT_THAT(std::string(large.status().message()), HasSubstr("1024 blocks or chunks pass"));
  EXPECT_FALSE(engine->attention_presets().empty());

  options.attention.all.mode = AttentionMode::kDense;
  engine = MakeTinyEngine(options, MakeReferenceKernels());
  request.attention = {.mode = AttentionMode::kInfiniteHip};
  const auto sparse = engine->Submit(request, std::make_shared<RecordingSink>());
  EXPECT_THAT(std::string(sparse.status().message()), HasSubstr("dense attention only"));
  EXPECT_TRUE(engine->attention_presets().empty());
}

TEST(EngineOptionsTest, WrongOptionsAreRefusedWithTheirNumbers) {
  const auto create = [](auto change) {
    EngineOptions options = SmallOptions();
    change(options);
    return Engine::Create(std::make_unique<TinyCheckpoint>(1), MakeReferenceKernels(), options)
        .status();
  };
  EXPECT_THAT(std::string(create([](auto& o) { o.max_batch_tokens = 1; }).message()),
              HasSubstr("max_batch_tokens: 1"));
  EXPECT_THAT(std::string(create([](auto& o) { o.max_running = 129; }).message()),
              HasSubstr("max_running: 129"));
  EXPECT_THAT(std::string(create([](auto& o) { o.max_context = 1; }).message()),
              HasSubstr("max_context: 1"));
  const absl::Status small = create([](auto& o) { o.kv_device_bytes = 15 * kTinyPageBytes; });
  EXPECT_EQ(small.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(small.message()), HasSubstr("hold 832 tokens"));
}

TEST(EngineOptionsTest, TheCacheHoldsWhatTheDeviceStores) {
  EngineOptions options = SmallOptions();
  options.kv_type.reset();
  const auto create = [&](std::unique_ptr<Kernels> kernels) {
    return Engine::Create(std::make_unique<TinyCheckpoint>(1), std::move(kernels), options);
  };
  EXPECT_EQ((*create(MakeCpuKernels(1)))->options().kv_type, DType::kF16);
  options.kv_type = DType::kF8;
  EXPECT_TRUE(create(MakeReferenceKernels()).ok());
  EXPECT_EQ(std::string(create(MakeCpuKernels(1)).status().message()),
            "kv_type: cpu stores f16, bf16, f32, not fp8");
}

// Requests arrive, are cancelled, pause and expire at random; nothing leaks, every one ends once.
TEST(EngineAbuseTest, RandomTrafficLeavesNothingBehind) {
  EngineOptions options = SmallOptions();
  options.max_context = 256;
  options.kv_device_bytes = 9 * kTinyPageBytes;
  absl::Time now = absl::FromUnixSeconds(1000);
  options.clock = [&now] { return now; };
  auto engine = MakeTinyEngine(options, MakeReferenceKernels());
  std::mt19937 random(5);
  std::map<RequestId, std::shared_ptr<RecordingSink>> sinks;
  for (int step = 0; step < 600; ++step) {
    now += absl::Milliseconds(10);
    if (random() % 3 == 0) {
      Request request = GreedyRequest(RandomPrompt(step, 1 + random() % 200), 1 + random() % 50);
      request.num_samples = 1 + static_cast<int32_t>(random() % 4);
      request.priority = static_cast<int32_t>(random() % 3);
      if (random() % 4 == 0) request.deadline = now + absl::Milliseconds(random() % 400);
      if (random() % 4 == 0) request.prompt_logprobs = 2;
      auto sink = std::make_shared<RecordingSink>();
      const auto id = engine->Submit(request, sink);
      ASSERT_TRUE(id.ok()) << id.status();
      sinks[*id] = sink;
    }
    if (!sinks.empty()) {
      auto it = std::next(sinks.begin(), static_cast<ptrdiff_t>(random() % sinks.size()));
      if (random() % 8 == 0) engine->Cancel(it->first);
      it->second->backlogged = random() % 2 == 0;
    }
    engine->Step();
    const EngineStats stats = engine->Stats();
    ASSERT_LE(stats.kv_pages_used, stats.kv_pages_total);
  }
  for (auto& [id, sink] : sinks) sink->backlogged = false;
  RunToEnd(*engine);
  size_t completed = 0;
  for (auto& [id, sink] : sinks) {
    ASSERT_EQ(sink->terminal.size(), 1u) << "request " << id;
    completed += sink->end().status.ok() ? 1 : 0;
  }
  EXPECT_GT(completed, sinks.size() / 4);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(EngineThreadTest, ManyThreadsSubmitAndCancel) {
  auto engine = MakeTinyEngine(SmallOptions(), MakeCpuKernels(2));
  engine->Start();
  std::vector<std::thread> threads;
  std::vector<std::shared_ptr<RecordingSink>> sinks(24);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 6; ++i) {
        auto sink = std::make_shared<RecordingSink>();
        const auto id = engine->Submit(GreedyRequest(RandomPrompt(t * 6 + i, 50), 20), sink);
        ASSERT_TRUE(id.ok());
        sinks[t * 6 + i] = sink;
        if (i % 3 == 2) engine->Cancel(*id);
        (void)engine->Stats();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int wait = 0; wait < 2000 && !engine->Idle(); ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(engine->Idle());
  engine->Stop();
  for (const auto& sink : sinks) EXPECT_TRUE(sink->finished());
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

}  // namespace
}  // namespace everlong
