// What a request gets: events, text, log probabilities, and what ends it.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using OutputTest = EngineTest;

class OutputBackendTest : public EngineBackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, OutputBackendTest, ::testing::Values("reference", "cpu"));

TEST_P(OutputBackendTest, EventsComeInOrderAndCountsAgree) {
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

TEST_P(OutputBackendTest, PromptLogprobsScoreEveryTokenButTheFirst) {
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

TEST_F(OutputTest, StopStringEndsTheOutputAndIsNotSent) {
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

TEST_F(OutputTest, StopTokenEndsTheOutputAndMinOutputTokensForbidsIt) {
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

TEST_F(OutputTest, EndOfSequenceEndsUnlessIgnored) {
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

TEST_F(OutputTest, PenaltiesKeepTokensFromComingBack) {
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

}  // namespace
}  // namespace everlong
