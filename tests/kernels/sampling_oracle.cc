#include "tests/kernels/sampling_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "gtest/gtest.h"
#include "kernels/sampling.h"

namespace everlong {
namespace {

// The tokens that top_k, top_p and min_p keep, the last two moved by the share `slack`, so that
// positive slack keeps no more and negative slack no less than exact arithmetic.
std::vector<int32_t> Kept(const Values& logits, const SampleParams& params, double slack) {
  std::vector<int32_t> order = Ranking(logits);
  if (params.top_k > 0 && params.top_k < static_cast<int32_t>(order.size())) {
    order.resize(params.top_k);
  }
  std::vector<double> mass(order.size());
  std::transform(order.begin(), order.end(), mass.begin(), [&](int32_t token) {
    return std::exp((double{logits[token]} - logits[order[0]]) / double{params.temperature});
  });
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  std::vector<int32_t> kept;
  double reached = 0.0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (mass[i] < params.min_p * (1.0 + slack)) break;
    kept.push_back(order[i]);
    reached += mass[i];
    if (params.top_p < 1.0f && reached >= params.top_p * total * (1.0 - slack)) break;
  }
  if (kept.empty()) kept.push_back(order[0]);
  return kept;
}

// log softmax in double.
std::vector<double> LogSoftmax(const Values& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (const float logit : logits) total += std::exp(logit - max);
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - max - std::log(total));
  return out;
}

// A share of error of the sum of exponentials is an absolute error of its logarithm; exponents,
// maximum and logarithm round relative to their size.
double LogprobBound(const Values& logits, double logprob) {
  const double max = *std::max_element(logits.begin(), logits.end());
  return Gamma(static_cast<int64_t>(logits.size()) + kExpRoundings) +
         Gamma(4) * (std::abs(max) + std::abs(logprob) + 1.0);
}

}  // namespace

void SampleBatch::Add(const Values& row, SampleParams row_params,
                      const std::vector<TokenAdjust>& row_adjusts) {
  row_params.adjust_begin = static_cast<int32_t>(adjusts.size());
  adjusts.insert(adjusts.end(), row_adjusts.begin(), row_adjusts.end());
  row_params.adjust_end = static_cast<int32_t>(adjusts.size());
  logits.insert(logits.end(), row.begin(), row.end());
  params.push_back(row_params);
}

std::vector<RowResult> SampleBatch::Run(Device& device, size_t first, size_t rows) const {
  int32_t max_top = 0;
  for (const SampleParams& p : params) max_top = std::max(max_top, p.num_top);
  std::vector<int32_t> tokens(rows);
  Values logprobs(rows);
  std::vector<int32_t> top_tokens(rows * max_top);
  Values top_logprobs(rows * max_top);
  const auto begin = logits.begin() + static_cast<ptrdiff_t>(first) * vocab;
  const Values given(begin, begin + static_cast<ptrdiff_t>(rows) * vocab);
  device->Sample({.logits = device.PlaceFloats(given),
                  .params = params.data() + first,
                  .adjusts = adjusts.data(),
                  .tokens = tokens.data(),
                  .logprobs = logprobs.data(),
                  .top_tokens = top_tokens.data(),
                  .top_logprobs = top_logprobs.data(),
                  .rows = static_cast<int32_t>(rows),
                  .vocab = vocab,
                  .max_top = max_top});
  device.FreePlaced();
  std::vector<RowResult> results;
  for (size_t r = 0; r < rows; ++r) {
    const auto top = static_cast<ptrdiff_t>(r) * max_top;
    const int32_t count = params[first + r].num_top;
    results.push_back({tokens[r],
                       logprobs[r],
                       {top_tokens.begin() + top, top_tokens.begin() + top + count},
                       {top_logprobs.begin() + top, top_logprobs.begin() + top + count}});
  }
  return results;
}

std::vector<int32_t> Ranking(const Values& logits) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return order;
}

Values AdjustedRow(const SampleBatch& batch, size_t row) {
  Values logits = batch.Row(row);
  const SampleParams& params = batch.params[row];
  for (int32_t i = params.adjust_begin; i < params.adjust_end; ++i) {
    const TokenAdjust& adjust = batch.adjusts[i];
    float& logit = logits[adjust.token];
    if (adjust.in_context && logit > 0) {
      logit /= params.repetition_penalty;
    } else if (adjust.in_context) {
      logit *= params.repetition_penalty;
    }
    const float present = adjust.output_count > 0 ? 1.0f : 0.0f;
    logit -= static_cast<float>(adjust.output_count) * params.frequency_penalty +
             present * params.presence_penalty;
    logit += adjust.bias;
  }
  return logits;
}

// Masses may be summed in f32 in any order, so where top_p and min_p cut is known up to that error;
// scores are known to a few roundings of double.
bool IsRightOutcome(const Values& logits, const SampleParams& params, int32_t token) {
  if (params.temperature == 0.0f) return token == Ranking(logits)[0];
  const double slack = Gamma(static_cast<int64_t>(logits.size()) + kExpRoundings + 4);
  const std::vector<int32_t> surely = Kept(logits, params, slack);
  const std::vector<int32_t> possibly = Kept(logits, params, -slack);
  if (std::find(possibly.begin(), possibly.end(), token) == possibly.end()) return false;
  const auto score = [&](int32_t t) {
    return double{logits[t]} / params.temperature + GumbelNoise(params.seed, params.counter, t);
  };
  double best = -std::numeric_limits<double>::infinity();
  for (const int32_t t : surely) best = std::max(best, score(t));
  const double rounding = 8 * 0x1p-53 * (std::abs(logits[token] / params.temperature) + 40.0);
  return score(token) >= best - rounding;
}

void ExpectReportsModelProbabilities(const Values& logits, const SampleParams& params,
                                     const RowResult& result) {
  const std::vector<double> exact = LogSoftmax(logits);
  EXPECT_NEAR(result.logprob, exact[result.token], LogprobBound(logits, exact[result.token]));
  EXPECT_LE(result.logprob, 0.0f);
  std::vector<int32_t> best = Ranking(logits);
  best.resize(params.num_top);
  EXPECT_EQ(result.top_tokens, best);
  for (size_t i = 0; i < best.size(); ++i) {
    EXPECT_NEAR(result.top_logprobs[i], exact[best[i]], LogprobBound(logits, exact[best[i]]));
  }
}

}  // namespace everlong
