// Sampling of a row of logits in host memory by the rules at SampleParams: the reference and CPU
// backends share it.
//
// A token is drawn with the Gumbel-max trick: the largest logit / temperature + noise falls on each
// token with its softmax probability (Maddison, Tarlow, Minka: A* Sampling, 2014, section 2), and
// on a kept subset with the renormalised one. The noise is a hash of (seed, counter, token), so a
// row's outcome depends on neither batch nor thread.
//
// Nothing sorts the vocabulary. top_k holds up to 2 k candidates in one pass; top_p drops what
// cannot matter, then halves the range in which the boundary lies, by median and mass. Both are
// linear in the vocabulary. A NaN counts as -infinity, so a broken model yields some valid token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"

namespace everlong {

// Standard Gumbel noise: -log(-log(1 - v)), where v in (0, 1) has the leading 52 bits of output
// `token` of a SplitMix64 generator (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
// Generators, 2014) whose state is a hash of seed and counter.
double GumbelNoise(uint64_t seed, uint64_t counter, int32_t token);

// sum_i exp((x[i] - shift) * factor).
double SumExp(std::span<const float> x, float shift, double factor);

// Rows may be sampled by several threads, with a sampler each: it owns its scratch memory.
class RowSampler {
 public:
  using SumExpFunction = double (*)(std::span<const float> x, float shift, double factor);
  struct Candidate {
    float logit;
    int32_t token;
  };

  // `sum_exp` is the only arithmetic over a whole row: a backend may pass a faster one.
  explicit RowSampler(SumExpFunction sum_exp = SumExp) : sum_exp_(sum_exp) {}

  // Makes room for any row of `args`: Sample allocates nothing afterwards.
  void Reserve(const SampleArgs& args);

  // Fills the outputs of `row`. The row of logits is left as given, but for NaN and +infinity.
  void Sample(const SampleArgs& args, int32_t row);

 private:
  void ReportTop(std::span<const float> logits, double log_total, const SampleArgs& args,
                 int32_t row);
  int32_t ChooseAdjusted(std::span<float> logits, const SampleArgs& args,
                         const SampleParams& params);
  int32_t Choose(std::span<const float> logits, const SampleParams& params);
  void KeepMostLikely(std::span<const float> logits, float peak, const SampleParams& params);

  SumExpFunction sum_exp_;
  std::vector<Candidate> candidates_;
  std::vector<float> given_;  // logits before their adjustment
};

}  // namespace everlong
