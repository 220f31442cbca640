// What the rules at SampleParams say of single tokens: order, adjustment, share and Gumbel noise.
// The same arithmetic as kernels/sampling.cc, which has the sources.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "kernels/args.h"

namespace everlong::cuda {

// Leaves finite values and -infinity, and one zero, so that order and differences are defined.
__device__ inline float Ordered(float logit) {
  return logit > -INFINITY ? fminf(logit, FLT_MAX) + 0.0f : -INFINITY;
}

// Larger for the more likely of two tokens, by logit, then the lower id; no two are equal.
__device__ inline uint64_t KeyOf(float logit, int32_t token) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t high = bits >> 31 ? ~bits : bits | 0x80000000;
  return uint64_t{high} << 32 | ~static_cast<uint32_t>(token);
}
__device__ inline int32_t TokenOf(uint64_t key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}
__device__ inline float LogitOf(uint64_t key) {
  const auto high = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(high >> 31 ? high & 0x7FFFFFFF : ~high);
}

// Rounds after every operation, as the host does.
__device__ inline float Adjusted(float logit, const TokenAdjust& adjust,
                                 const SampleParams& params) {
  if (adjust.in_context) {
    logit = logit > 0.0f ? __fdiv_rn(logit, params.repetition_penalty)
                         : __fmul_rn(logit, params.repetition_penalty);
  }
  if (adjust.output_count > 0) {
    const auto count = static_cast<float>(adjust.output_count);
    logit = __fsub_rn(
        logit, __fadd_rn(__fmul_rn(count, params.frequency_penalty), params.presence_penalty));
  }
  return Ordered(__fadd_rn(logit, adjust.bias));
}

__device__ inline float LogProbability(float logit, double log_total) {
  return logit == -INFINITY ? -INFINITY : static_cast<float>(fmin(0.0, logit - log_total));
}

__device__ inline uint64_t SplitMix(uint64_t state, uint64_t n) {
  uint64_t z = state + (n + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// Two logarithms of double: dear, so that few tokens come to it.
__device__ __noinline__ inline double GumbelOfBits(uint64_t bits) {
  const double v = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  return -log(-log1p(-v));
}

// Off by less than 3e-5. Of v and 1 - v the smaller is used: f32 holds it to its precision.
__device__ inline float RoughGumbelOfBits(uint64_t bits) {
  const bool is_small = bits >> 63 == 0;
  const float v = (__ull2float_rn((is_small ? bits : ~bits) >> 12) + 0.5f) * 0x1p-52f;
  return -logf(is_small ? -log1pf(-v) : -logf(v));
}

struct Scored {
  double score;
  int32_t token;
};
__device__ inline Scored Better(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.token < b.token) ? a : b;
}

// How tokens of one row are drawn at a temperature above 0. `peak`: the largest logit, adjusted,
// of those that take part, not -infinity.
class Draw {
 public:
  // Rough scores of tokens that may be the best differ by less than so much from their scores less
  // the peak's scaled logit: by the noise's error, and the roundings of at most 41 (the width of
  // the noise), twice.
  static constexpr float kMargin = 1e-3f;

  __device__ Draw(const SampleParams& params, float peak)
      : inverse_temperature_(1.0 / params.temperature),
        noise_state_(SplitMix(SplitMix(params.seed, 0), params.counter)),
        temperature_(params.temperature),
        peak_(peak) {}

  __device__ double Scaled(float logit) const { return __dmul_rn(logit, inverse_temperature_); }
  // exp of the difference to the peak.
  __device__ float Mass(float logit) const { return expf((logit - peak_) / temperature_); }
  __device__ Scored Score(float logit, int32_t token) const {
    return {Scaled(logit) + GumbelOfBits(Bits(token)), token};
  }
  __device__ float RoughScore(float logit, int32_t token) const {
    return (logit - peak_) / temperature_ + RoughGumbelOfBits(Bits(token));
  }

 private:
  __device__ uint64_t Bits(int32_t token) const { return SplitMix(noise_state_, token); }

  double inverse_temperature_;
  uint64_t noise_state_;
  float temperature_;
  float peak_;
};

}  // namespace everlong::cuda
