// Sampling, against an oracle that sorts everything, and its distribution.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/sampling_oracle.h"

namespace everlong {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SamplingTest : public ::testing::TestWithParam<Backend> {
 protected:
  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return choices.begin()[random_() % choices.size()];
  }

  SampleParams RandomParams(int32_t vocab) {
    return {.temperature = Pick({0.0f, 0.3f, 1.0f, 1.0f, 2.5f}),
            .top_p = Pick({1.0f, 1.0f, 0.999f, 0.9f, 0.5f, 0.01f}),
            .min_p = Pick({0.0f, 0.0f, 0.02f, 0.3f, 1.0f}),
            .repetition_penalty = Pick({1.0f, 1.3f, 0.5f}),
            .presence_penalty = Pick({0.0f, 0.5f, -1.0f}),
            .frequency_penalty = Pick({0.0f, 0.25f, -0.5f}),
            .top_k = Pick({0, 0, 1, 2, 5, 40, vocab, vocab + 10}),
            .num_top = std::min(vocab, Pick({0, 1, 5, 20})),
            .seed = random_(),
            .counter = random_() % 100};
  }

  // Half of the rows have many equal logits.
  Values RandomLogits(int32_t vocab) {
    Values logits = RandomValues(random_, vocab, DType::kF32, 3.0);
    if (random_() % 2 == 0) {
      for (float& logit : logits) logit = std::round(logit * 2) / 2;
    }
    return logits;
  }

  std::vector<TokenAdjust> RandomAdjusts(int32_t vocab) {
    std::vector<int32_t> tokens(vocab);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::shuffle(tokens.begin(), tokens.end(), random_);
    tokens.resize(random_() % std::min(vocab, 50));
    std::vector<TokenAdjust> adjusts(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      adjusts[i] = {.token = tokens[i],
                    .output_count = Pick({0, 1, 3}),
                    .bias = Pick({0.0f, 0.0f, 2.0f, -2.0f, -kInfinity}),
                    .in_context = random_() % 2 == 0};
    }
    return adjusts;
  }

  std::mt19937 random_{1};
  Device device_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Backends, SamplingTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.name; });

TEST_P(SamplingTest, AgreesWithSortingOracle) {
  for (const int32_t vocab : {1, 2, 7, 64, 1000, 32003}) {
    SampleBatch batch(vocab);
    for (int row = 0; row < (vocab > 1000 ? 25 : 150); ++row) {
      batch.Add(RandomLogits(vocab), RandomParams(vocab), RandomAdjusts(vocab));
    }
    const std::vector<RowResult> results = batch.Run(device_);
    for (size_t row = 0; row < results.size(); ++row) {
      const SampleParams& p = batch.params[row];
      SCOPED_TRACE(::testing::Message()
                   << "vocab " << vocab << ", row " << row << ", temperature " << p.temperature
                   << ", top_k " << p.top_k << ", top_p " << p.top_p << ", min_p " << p.min_p);
      ASSERT_TRUE(IsRightOutcome(AdjustedRow(batch, row), p, results[row].token))
          << results[row].token;
      ExpectReportsModelProbabilities(batch.Row(row), p, results[row]);
    }
  }
}

TEST_P(SamplingTest, AdjustsInTheOrderOfTheContract) {
  const SampleParams params = {
      .repetition_penalty = 2.0f, .presence_penalty = 0.5f, .frequency_penalty = 0.25f};
  // 8 / 2 - (2 * 0.25 + 0.5) + 1.5 = 4.5, and -1 * 2 - (0.25 + 0.5) + 7.5 = 4.75.
  const TokenAdjust positive = {.token = 0, .output_count = 2, .bias = 1.5f, .in_context = true};
  const TokenAdjust negative = {.token = 1, .output_count = 1, .bias = 7.5f, .in_context = true};
  // Biased only: neither penalty applies.
  const TokenAdjust biased = {.token = 2, .bias = -1.0f};
  SampleBatch batch(3);
  batch.Add({8.0f, -1.0f, 5.625f}, params, {positive, negative, biased});  // 4.5, 4.75, 4.625
  batch.Add({8.0f, -1.0f, 5.875f}, params, {positive, negative, biased});  // 4.5, 4.75, 4.875
  batch.Add({8.625f, -1.0f, 5.0f}, params, {positive, negative, biased});  // 4.8125, 4.75, 4
  batch.Add({8.375f, -1.0f, 5.0f}, params, {positive, negative, biased});  // 4.6875, 4.75, 4
  const std::vector<RowResult> results = batch.Run(device_);
  EXPECT_EQ(results[0].token, 1);
  EXPECT_EQ(results[1].token, 2);
  EXPECT_EQ(results[2].token, 0);
  EXPECT_EQ(results[3].token, 1);
}

TEST_P(SamplingTest, TiesGoToLowerIds) {
  constexpr int32_t kVocab = 3000;
  const Values equal(kVocab, 0.25f);
  SampleBatch batch(kVocab);
  batch.Add(equal, {.num_top = 6}, {});
  for (uint64_t counter = 0; counter < 200; ++counter) {
    batch.Add(equal, {.temperature = 1.0f, .top_k = 5, .counter = counter}, {});
    batch.Add(equal, {.temperature = 1.0f, .top_p = 9.5f / kVocab, .counter = counter}, {});
  }
  const std::vector<RowResult> results = batch.Run(device_);
  EXPECT_EQ(results[0].token, 0);
  EXPECT_EQ(results[0].top_tokens, (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  int32_t largest_of_5 = 0;
  int32_t largest_of_10 = 0;
  for (size_t row = 1; row < results.size(); row += 2) {
    largest_of_5 = std::max(largest_of_5, results[row].token);
    largest_of_10 = std::max(largest_of_10, results[row + 1].token);
  }
  EXPECT_EQ(largest_of_5, 4);
  EXPECT_EQ(largest_of_10, 9);
}

// Pearson's statistic of `tokens` against `expected` shares, and what it exceeds with probability
// 1/1000 at most: d + 2 sqrt(d x) + 2 x with probability exp(-x) for d degrees of freedom (Laurent,
// Massart: Adaptive estimation of a quadratic functional, 2000, lemma 1).
void ExpectFollows(const std::vector<int32_t>& tokens, const std::vector<double>& expected) {
  std::vector<double> count(expected.size());
  for (const int32_t token : tokens) ++count[token];
  double statistic = 0.0;
  double freedom = -1.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double mean = expected[i] * static_cast<double>(tokens.size());
    if (mean == 0.0) {
      EXPECT_EQ(count[i], 0) << i;
      continue;
    }
    ASSERT_GT(mean, 5.0) << "too few draws for token " << i;
    statistic += (count[i] - mean) * (count[i] - mean) / mean;
    ++freedom;
  }
  const double x = std::log(1000.0);
  EXPECT_LT(statistic, freedom + 2 * std::sqrt(freedom * x) + 2 * x);
}

// The shares of `kept`, ids in falling order of logit, at `temperature`.
std::vector<double> Shares(const Values& logits, size_t kept, double temperature) {
  const std::vector<int32_t> order = Ranking(logits);
  std::vector<double> shares(logits.size());
  double total = 0.0;
  for (size_t i = 0; i < kept; ++i) total += std::exp(logits[order[i]] / temperature);
  for (size_t i = 0; i < kept; ++i) {
    shares[order[i]] = std::exp(logits[order[i]] / temperature) / total;
  }
  return shares;
}

const Values kFewLogits = {0.5f, 2.0f, -1.0f, 1.5f, 0.0f, 1.0f, -0.5f, 2.0f, 0.7f, -2.0f};
constexpr int kDraws = 20000;

// Draws with `params` at the counters or, with `by_seed`, the seeds 0, 1, 2, ...
std::vector<int32_t> Draw(Device& device, SampleParams params, bool by_seed) {
  SampleBatch batch(static_cast<int32_t>(kFewLogits.size()));
  for (int i = 0; i < kDraws; ++i) {
    (by_seed ? params.seed : params.counter) = i;
    batch.Add(kFewLogits, params, {});
  }
  std::vector<int32_t> tokens;
  for (const RowResult& result : batch.Run(device)) tokens.push_back(result.token);
  return tokens;
}

using DrawParam = std::tuple<Backend, bool>;  // by seeds; else by counters

std::string DrawName(const ::testing::TestParamInfo<DrawParam>& info) {
  const auto& [backend, by_seed] = info.param;
  return backend.name + (by_seed ? "_seeds" : "_counters");
}

class DrawTest : public ::testing::TestWithParam<DrawParam> {
 protected:
  std::vector<int32_t> Draws(const SampleParams& params) {
    return Draw(device_, params, std::get<bool>(GetParam()));
  }

  Device device_{std::get<Backend>(GetParam())};
};
INSTANTIATE_TEST_SUITE_P(Backends, DrawTest,
                         ::testing::Combine(::testing::ValuesIn(Backends()), ::testing::Bool()),
                         DrawName);

TEST_P(DrawTest, FrequenciesFollowSoftmax) {
  ExpectFollows(Draws({.temperature = 1.0f}), Shares(kFewLogits, 10, 1.0));
}

TEST_P(DrawTest, FrequenciesFollowSoftmaxFromAnySeedAndCounter) {
  ExpectFollows(Draws({.temperature = 0.7f, .seed = 42, .counter = 7}),
                Shares(kFewLogits, 10, double{0.7f}));
}

TEST_P(DrawTest, FrequenciesFollowSoftmaxOfTheTopK) {
  ExpectFollows(Draws({.temperature = 1.5f, .top_k = 4}), Shares(kFewLogits, 4, 1.5));
}

// The three largest hold 0.69 of the mass, four of them 0.79.
TEST_P(DrawTest, FrequenciesFollowSoftmaxOfTheTopP) {
  ExpectFollows(Draws({.temperature = 1.0f, .top_p = 0.75f}), Shares(kFewLogits, 4, 1.0));
}

// exp(-1) > 0.3 > exp(-1.3).
TEST_P(DrawTest, FrequenciesFollowSoftmaxAboveMinP) {
  ExpectFollows(Draws({.temperature = 1.0f, .min_p = 0.3f}), Shares(kFewLogits, 4, 1.0));
}

TEST_P(DrawTest, NeighboursAreIndependent) {
  const std::vector<double> shares = Shares(kFewLogits, 10, 3.0);
  std::vector<double> joint;
  for (const double first : shares) {
    for (const double second : shares) joint.push_back(first * second);
  }
  const std::vector<int32_t> tokens = Draws({.temperature = 3.0f});
  std::vector<int32_t> pairs;
  for (size_t i = 0; i + 1 < tokens.size(); i += 2) {
    pairs.push_back(tokens[i] * static_cast<int32_t>(shares.size()) + tokens[i + 1]);
  }
  ExpectFollows(pairs, joint);
}

TEST_P(SamplingTest, ForbiddenTokensAreNeverSampled) {
  constexpr int32_t kVocab = 40;
  std::vector<TokenAdjust> forbid;
  for (int32_t token = 0; token < kVocab; ++token) {
    if (token % 13 != 5) forbid.push_back({.token = token, .bias = -kInfinity});
  }
  SampleBatch batch(kVocab);
  for (uint64_t counter = 0; counter < 500; ++counter) {
    const Values logits = RandomValues(random_, kVocab, DType::kF32, 5.0);
    for (const float temperature : {0.0f, 0.1f, 100.0f}) {
      batch.Add(logits, {.temperature = temperature, .counter = counter}, forbid);
      batch.Add(logits, {.temperature = temperature, .top_k = 30, .counter = counter}, forbid);
      batch.Add(logits, {.temperature = temperature, .top_p = 0.99f, .counter = counter}, forbid);
    }
  }
  for (const RowResult& result : batch.Run(device_)) ASSERT_EQ(result.token % 13, 5);
}

TEST_P(SamplingTest, ScoresTokensWithoutSampling) {
  constexpr int32_t kVocab = 500;
  SampleBatch batch(kVocab);
  for (int32_t token = 0; token < kVocab; token += 7) {
    batch.Add(RandomLogits(kVocab), {.score_token = token, .num_top = token % 3}, {});
  }
  const std::vector<RowResult> results = batch.Run(device_);
  for (size_t row = 0; row < results.size(); ++row) {
    ASSERT_EQ(results[row].token, batch.params[row].score_token);
    ExpectReportsModelProbabilities(batch.Row(row), batch.params[row], results[row]);
  }
}

TEST_P(SamplingTest, RowIsTheSameInAnyBatch) {
  constexpr int32_t kVocab = 777;
  SampleBatch batch(kVocab);
  for (int row = 0; row < 40; ++row) {
    batch.Add(RandomLogits(kVocab), RandomParams(kVocab), RandomAdjusts(kVocab));
  }
  const std::vector<RowResult> together = batch.Run(device_);
  for (size_t row = 0; row < together.size(); ++row) {
    const RowResult alone = batch.Run(device_, row, 1)[0];
    ASSERT_EQ(alone.token, together[row].token);
    ExpectSameBits({alone.logprob}, {together[row].logprob});
    ASSERT_EQ(alone.top_tokens, together[row].top_tokens);
    ExpectSameBits(alone.top_logprobs, together[row].top_logprobs);
  }
}

TEST_P(SamplingTest, VocabularyOf150Thousand) {
  constexpr int32_t kVocab = 151936;
  SampleBatch batch(kVocab);
  batch.Add(RandomLogits(kVocab), {.num_top = 20}, {});
  batch.Add(RandomLogits(kVocab), {.temperature = 1.0f, .seed = 1}, {});
  batch.Add(RandomLogits(kVocab), {.temperature = 1.0f, .top_p = 0.95f, .seed = 2}, {});
  batch.Add(RandomLogits(kVocab), {.temperature = 0.6f, .top_k = 50, .num_top = 5, .seed = 3}, {});
  batch.Add(RandomLogits(kVocab), {.temperature = 0.8f, .min_p = 0.05f, .seed = 4}, {});
  const std::vector<RowResult> results = batch.Run(device_);
  for (size_t row = 0; row < results.size(); ++row) {
    EXPECT_TRUE(IsRightOutcome(batch.Row(row), batch.params[row], results[row].token)) << row;
    ExpectReportsModelProbabilities(batch.Row(row), batch.params[row], results[row]);
  }
}

// A model whose sums overflow must not take the server with it, nor other rows.
TEST_P(SamplingTest, BrokenLogitsYieldValidTokens) {
  constexpr int32_t kVocab = 300;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SampleBatch batch(kVocab);
  const Values good = RandomLogits(kVocab);
  Values some_nan = good;
  for (int32_t i = 0; i < kVocab; i += 2) some_nan[i] = nan;
  Values infinite = good;
  infinite[7] = kInfinity;
  std::vector<TokenAdjust> forbid_all(kVocab);
  for (int32_t token = 0; token < kVocab; ++token) {
    forbid_all[token] = {.token = token, .bias = -kInfinity};
  }
  const std::vector<SampleParams> ways = {{.num_top = 5},
                                          {.temperature = 1.0f},
                                          {.temperature = 1.0f, .top_k = 10},
                                          {.temperature = 1.0f, .top_p = 0.9f},
                                          {.temperature = 1.0f, .min_p = 0.1f}};
  for (const SampleParams& way : ways) {
    batch.Add(Values(kVocab, nan), way, {});
    batch.Add(Values(kVocab, -kInfinity), way, {});
    batch.Add(good, way, forbid_all);
    batch.Add(some_nan, way, {});
    batch.Add(infinite, way, {});
    batch.Add(good, way, {});
  }
  const std::vector<RowResult> results = batch.Run(device_);
  for (size_t row = 0; row < results.size(); row += 6) {
    for (size_t nothing = row; nothing < row + 3; ++nothing) EXPECT_EQ(results[nothing].token, 0);
    EXPECT_EQ(results[row + 3].token % 2, 1);
    EXPECT_EQ(results[row + 4].token, 7);
    EXPECT_TRUE(IsRightOutcome(good, batch.params[row + 5], results[row + 5].token));
    for (size_t i = row; i < row + 6; ++i) {
      EXPECT_LE(results[i].logprob, 0.0f);
      for (const float logprob : results[i].top_logprobs) EXPECT_LE(logprob, 0.0f);
    }
  }
}

}  // namespace
}  // namespace everlong
