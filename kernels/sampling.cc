#include "kernels/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/check.h"

namespace everlong {
namespace {

using Candidate = RowSampler::Candidate;

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Output n of the SplitMix64 generator that starts from `state`.
uint64_t SplitMix(uint64_t state, uint64_t n) {
  uint64_t z = state + (n + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

uint64_t NoiseState(uint64_t seed, uint64_t counter) {
  return SplitMix(SplitMix(seed, 0), counter);
}

double GumbelOfBits(uint64_t bits) {
  const double v = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  return -std::log(-std::log1p(-v));
}

// Not below GumbelOfBits(bits): -log(1 - v) >= v, and v >= 2^-(zeros + 1).
double GumbelBound(uint64_t bits) {
  return (std::countl_zero(bits) + 1) * std::numbers::ln2;
}

// Finds the token with the largest logit / temperature + noise among those entered. Starts with the
// most likely one, so that nearly all others lose by their bound, without a logarithm.
class GumbelRace {
 public:
  GumbelRace(const SampleParams& params, Candidate peak)
      : inverse_temperature_(1.0 / params.temperature),
        floor_(peak.logit * inverse_temperature_ + std::log(params.min_p)),
        state_(NoiseState(params.seed, params.counter)) {
    Enter(peak);
  }

  void Enter(Candidate candidate) {
    const double scaled = candidate.logit * inverse_temperature_;
    if (scaled < floor_) return;
    const uint64_t bits = SplitMix(state_, candidate.token);
    if (scaled + GumbelBound(bits) < best_) return;
    const double score = scaled + GumbelOfBits(bits);
    if (score > best_ || (score == best_ && candidate.token < winner_)) {
      best_ = score;
      winner_ = candidate.token;
    }
  }

  int32_t winner() const { return winner_; }

 private:
  double inverse_temperature_;
  double floor_;  // min_p, as a bound on logit / temperature
  uint64_t state_;
  double best_ = -std::numeric_limits<double>::infinity();
  int32_t winner_ = 0;
};

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

Candidate Peak(std::span<const float> logits) {
  const auto peak = std::max_element(logits.begin(), logits.end());
  return {*peak, static_cast<int32_t>(peak - logits.begin())};
}

void KeepTop(std::vector<Candidate>& candidates, size_t k) {
  if (candidates.size() <= k) return;
  const auto last = candidates.begin() + static_cast<ptrdiff_t>(k) - 1;
  std::nth_element(candidates.begin(), last, candidates.end(), MoreLikely);
  candidates.resize(k);
}

// Fills `top` with the k >= 1 most likely tokens, in no order.
void SelectTop(std::span<const float> logits, size_t k, std::vector<Candidate>& top) {
  top.clear();
  float floor = kForbidden;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] < floor) continue;
    top.push_back({logits[i], static_cast<int32_t>(i)});
    if (top.size() < 2 * k) continue;
    KeepTop(top, k);
    floor = top.back().logit;
  }
  KeepTop(top, k);
}

double Mass(float logit, float shift, double factor) {
  return std::exp((static_cast<double>(logit) - shift) * factor);
}

// Keeps the smallest set of most likely candidates whose Mass reaches `mass`, one at least.
void KeepMass(std::vector<Candidate>& candidates, double mass, float shift, double factor) {
  auto begin = candidates.begin();
  auto end = candidates.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, MoreLikely);
    double upper = 0.0;
    for (auto c = begin; c != middle; ++c) upper += Mass(c->logit, shift, factor);
    if (upper >= mass) {
      end = middle;
    } else {
      mass -= upper;
      begin = middle;
    }
  }
  candidates.erase(end, candidates.end());
}

float Adjusted(float logit, const TokenAdjust& adjust, const SampleParams& params) {
  if (adjust.in_context) {
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  if (adjust.output_count > 0) {
    logit -= static_cast<float>(adjust.output_count) * params.frequency_penalty +
             params.presence_penalty;
  }
  return logit + adjust.bias;
}

// Leaves finite values and -infinity, so that order and differences are defined.
float Ordered(float logit) {
  return logit > kForbidden ? std::min(logit, std::numeric_limits<float>::max()) : kForbidden;
}

float LogProbability(float logit, double log_total) {
  if (logit == kForbidden) return kForbidden;
  return static_cast<float>(std::min(0.0, logit - log_total));
}

}  // namespace

double GumbelNoise(uint64_t seed, uint64_t counter, int32_t token) {
  return GumbelOfBits(SplitMix(NoiseState(seed, counter), token));
}

double SumExp(std::span<const float> x, float shift, double factor) {
  double sum = 0.0;
  for (const float value : x) sum += Mass(value, shift, factor);
  return sum;
}

void RowSampler::Reserve(const SampleArgs& args) {
  candidates_.reserve(args.vocab);
  for (int32_t row = 0; row < args.rows; ++row) {
    given_.reserve(args.params[row].adjust_end - args.params[row].adjust_begin);
  }
}

void RowSampler::Sample(const SampleArgs& args, int32_t row) {
  const SampleParams& params = args.params[row];
  const std::span<float> logits(args.logits + int64_t{row} * args.vocab, args.vocab);
  EVERLONG_CHECK(args.vocab > 0 && params.score_token < args.vocab);
  EVERLONG_CHECK(params.num_top <= std::min(args.max_top, args.vocab));

  for (float& logit : logits) logit = Ordered(logit);
  const float peak = Peak(logits).logit;
  const double log_total = peak + std::log(sum_exp_(logits, peak, 1.0));
  if (params.num_top > 0) ReportTop(logits, log_total, args, row);
  const int32_t token =
      params.score_token >= 0 ? params.score_token : ChooseAdjusted(logits, args, params);
  args.tokens[row] = token;
  args.logprobs[row] = LogProbability(logits[token], log_total);
}

void RowSampler::ReportTop(std::span<const float> logits, double log_total, const SampleArgs& args,
                           int32_t row) {
  const size_t begin = static_cast<size_t>(row) * args.max_top;
  SelectTop(logits, args.params[row].num_top, candidates_);
  std::sort(candidates_.begin(), candidates_.end(), MoreLikely);
  for (size_t i = 0; i < candidates_.size(); ++i) {
    args.top_tokens[begin + i] = candidates_[i].token;
    args.top_logprobs[begin + i] = LogProbability(candidates_[i].logit, log_total);
  }
}

int32_t RowSampler::ChooseAdjusted(std::span<float> logits, const SampleArgs& args,
                                   const SampleParams& params) {
  const std::span adjusts(args.adjusts + params.adjust_begin, args.adjusts + params.adjust_end);
  given_.clear();
  for (const TokenAdjust& adjust : adjusts) {
    EVERLONG_CHECK(adjust.token >= 0 && adjust.token < args.vocab);
    float& logit = logits[adjust.token];
    given_.push_back(logit);
    logit = Ordered(Adjusted(logit, adjust, params));
  }
  const int32_t token = Choose(logits, params);
  for (size_t i = 0; i < adjusts.size(); ++i) logits[adjusts[i].token] = given_[i];
  return token;
}

int32_t RowSampler::Choose(std::span<const float> logits, const SampleParams& params) {
  const Candidate peak = Peak(logits);
  if (params.temperature == 0.0f || peak.logit == kForbidden) return peak.token;
  GumbelRace race(params, peak);
  if (params.top_k > 0 || params.top_p < 1.0f) {
    KeepMostLikely(logits, peak.logit, params);
    for (const Candidate& candidate : candidates_) race.Enter(candidate);
  } else {
    for (size_t i = 0; i < logits.size(); ++i) race.Enter({logits[i], static_cast<int32_t>(i)});
  }
  return race.winner();
}

void RowSampler::KeepMostLikely(std::span<const float> logits, float peak,
                                const SampleParams& params) {
  const double factor = 1.0 / params.temperature;
  double total = 0.0;
  if (params.top_k > 0) {
    SelectTop(logits, params.top_k, candidates_);
    for (const Candidate& c : candidates_) total += Mass(c.logit, peak, factor);
  } else {
    // The total is 1 at least: all tokens below this share together do not exceed 1 - top_p of it.
    const double share = (1.0 - params.top_p) / static_cast<double>(logits.size());
    const double floor = std::log(share) / factor + peak;
    total = sum_exp_(logits, peak, factor);
    candidates_.clear();
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] >= floor) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
    }
  }
  if (params.top_p < 1.0f) KeepMass(candidates_, params.top_p * total, peak, factor);
}

}  // namespace everlong
