#include "engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "engine/output_text.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

struct BadRequest {
  const char* field;
  const char* limit;
  std::function<void(Request&)> spoil;
};

TEST(ValidateRequestTest, EachFieldIsCheckedAndNamed) {
  const TinyCheckpoint checkpoint(1);
  Request good = GreedyRequest(RandomPrompt(1, 10), 20);
  good.stop = {"x"};
  EXPECT_TRUE(ValidateRequest(good, checkpoint.config(), 100).ok());
  const float nan = std::nanf("");
  const std::vector<BadRequest> cases = {
      {"prompt", "at least 1", [](Request& r) { r.prompt.clear(); }},
      {"prompt", "served length of 100", [](Request& r) { r.prompt.assign(100, 1); }},
      {"prompt", "[0, 258)", [](Request& r) { r.prompt[3] = 258; }},
      {"prompt", "[0, 258)", [](Request& r) { r.prompt[3] = -1; }},
      {"max_output_tokens", "served length of 100", [](Request& r) { r.max_output_tokens = 91; }},
      {"max_output_tokens", "[0, ", [](Request& r) { r.max_output_tokens = -1; }},
      {"min_output_tokens", "[0, 20]", [](Request& r) { r.min_output_tokens = 21; }},
      {"min_output_tokens", "[0, 20]", [](Request& r) { r.min_output_tokens = -1; }},
      {"stop_token_ids", "[0, 258)", [](Request& r) { r.stop_token_ids = {500}; }},
      {"stop", "empty", [](Request& r) { r.stop = {""}; }},
      {"temperature", "[0, ", [](Request& r) { r.sampling.temperature = -0.1f; }},
      {"temperature", "nan", [=](Request& r) { r.sampling.temperature = nan; }},
      {"top_k", "[0, ", [](Request& r) { r.sampling.top_k = -1; }},
      {"top_p", ", 1]", [](Request& r) { r.sampling.top_p = 0.0f; }},
      {"top_p", ", 1]", [](Request& r) { r.sampling.top_p = 1.01f; }},
      {"min_p", "[0, ", [](Request& r) { r.sampling.min_p = 1.0f; }},
      {"repetition_penalty", ", 10]", [](Request& r) { r.sampling.repetition_penalty = 0.0f; }},
      {"presence_penalty", "[-2, 2]", [](Request& r) { r.sampling.presence_penalty = 2.1f; }},
      {"frequency_penalty", "[-2, 2]", [=](Request& r) { r.sampling.frequency_penalty = nan; }},
      {"logit_bias", "[0, 258)",
       [](Request& r) {
         r.sampling.logit_bias = {{999, 1.0f}};
       }},
      {"logit_bias", "[-100, 100]",
       [](Request& r) {
         r.sampling.logit_bias = {{1, 101.0f}};
       }},
      {"logit_bias", "twice",
       [](Request& r) {
         r.sampling.logit_bias = {{1, 1.0f}, {1, 2.0f}};
       }},
      {"num_samples", "[1, 16]", [](Request& r) { r.num_samples = 0; }},
      {"num_samples", "[1, 16]", [](Request& r) { r.num_samples = 17; }},
      {"logprobs", "[-1, 20]", [](Request& r) { r.logprobs = 21; }},
      {"prompt_logprobs", "[-1, 20]", [](Request& r) { r.prompt_logprobs = 21; }},
  };
  for (const BadRequest& bad : cases) {
    Request request = good;
    bad.spoil(request);
    const absl::Status status = ValidateRequest(request, checkpoint.config(), 100);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.field));
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.limit));
  }
}

class OutputTextTest : public ::testing::Test {
 protected:
  OutputTextTest() : tokenizer_(*Tokenizer::FromJson(ByteTokenizerJson())) {}

  OutputText Make(std::vector<std::string> stop) {
    return OutputText(tokenizer_.get(), true, std::move(stop));
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(OutputTextTest, HoldsBackWhatMayBecomeAStopString) {
  OutputText text = Make({"abc", "cab!"});
  EXPECT_EQ(text.Append('x'), "x");
  EXPECT_EQ(text.Append('a'), "");
  EXPECT_EQ(text.Append('b'), "");
  EXPECT_EQ(text.Append('a'), "ab");
  EXPECT_EQ(text.Append('b'), "");
  EXPECT_EQ(text.Append('c'), "");
  EXPECT_EQ(text.matched_stop(), 0);
}

TEST_F(OutputTextTest, FinishReleasesWhatWasHeldBack) {
  OutputText text = Make({"abc"});
  EXPECT_EQ(text.Append('a'), "");
  EXPECT_EQ(text.Finish(), "a");
  EXPECT_EQ(text.matched_stop(), -1);
}

TEST_F(OutputTextTest, UnfinishedUtf8IsReplacedAtTheEnd) {
  OutputText text = Make({});
  EXPECT_EQ(text.Append(0xE2), "");
  EXPECT_EQ(text.Append(0x82), "");
  EXPECT_EQ(text.Append(0xAC), "\xE2\x82\xAC");
  EXPECT_EQ(text.Append(0xE2), "");
  EXPECT_EQ(text.Finish(), "\xEF\xBF\xBD");
}

// Whatever the pieces, what is sent is the text before the first stop string, in whole characters.
TEST_F(OutputTextTest, RandomTextEqualsASearchInTheWholeText) {
  std::mt19937 random(4);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop;
      for (uint32_t j = 0; j < 1 + random() % 4; ++j) stop += static_cast<char>('a' + random() % 2);
      stops.push_back(stop);
    }
    OutputText text = Make(stops);
    std::string whole;
    std::string sent;
    for (int i = 0; i < 24 && text.matched_stop() < 0; ++i) {
      const char c = static_cast<char>('a' + random() % 3);
      whole += c;
      sent += text.Append(c);
    }
    size_t first = std::string::npos;
    for (const std::string& stop : stops) first = std::min(first, whole.find(stop));
    if (first == std::string::npos) sent += text.Finish();
    EXPECT_EQ(sent, whole.substr(0, first));
    EXPECT_EQ(text.matched_stop() >= 0, first != std::string::npos);
    if (first != std::string::npos) {
      EXPECT_EQ(whole.compare(first, stops[text.matched_stop()].size(), stops[text.matched_stop()]),
                0);
    }
  }
}

}  // namespace
}  // namespace everlong
