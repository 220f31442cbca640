// Sparse attention through the whole engine, and what requests are told of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

class SparseAttentionBackendTest : public EngineBackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SparseAttentionBackendTest,
                         ::testing::Values("reference", "cpu"));

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

TEST_P(SparseAttentionBackendTest, WhereEverythingIsSelectedSparseIsDense) {
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

TEST_P(SparseAttentionBackendTest, FinishedTellsWhatAttentionRead) {
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

TEST(SparseAttentionTest, RequestsAreWarnedOfPositionsThatTheModelDoesNotBear) {
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

}  // namespace
}  // namespace everlong
