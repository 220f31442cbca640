// What one block finds out about a row of logits by passing over it several times: its most likely
// tokens, and the best of those that top_k, top_p and min_p keep.
//
// Among the tokens by falling likelihood each of those three keeps a first part. Where the best
// token of a part is not kept, all that are kept are more likely than it: so the best of the more
// likely ones is taken instead, until one is kept. A part has the best token with a likelihood of
// its share, so that this takes about 1 + log(1 / share kept) rounds.
#pragma once

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {

inline constexpr int kRowThreads = 1024;
inline constexpr int kMaxTop = 256;  // reported tokens

// A row that a block of kRowThreads passes over several times.
struct Row {
  float* logits;
  int32_t vocab;

  template <class Visit>
  __device__ void ForEach(const Visit& visit) const {
    constexpr int kBatch = 8;  // loads in flight
    for (int32_t first = threadIdx.x; first < vocab; first += kBatch * kRowThreads) {
      float x[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int32_t token = first + i * kRowThreads;
        x[i] = token < vocab ? logits[token] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int32_t token = first + i * kRowThreads;
        if (token < vocab) visit(Ordered(x[i]), token);
      }
    }
  }
};

// A bin of a histogram, and how many values lie in bins before it.
struct Bin {
  int32_t index;
  int32_t before;
  int32_t count;
};

// The bin that holds the `rank`-th value, counted from 1. `counts` holds two bins for each thread.
__device__ inline Bin FindBin(const int32_t* counts, int32_t rank) {
  __shared__ int32_t warp_counts[kRowThreads / 32];
  __shared__ Bin found;
  const int first = 2 * threadIdx.x;
  const int32_t count = counts[first] + counts[first + 1];
  int32_t end = InclusiveSum(count);
  if (threadIdx.x % 32 == 31) warp_counts[threadIdx.x / 32] = end;
  __syncthreads();
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) end += warp_counts[warp];
  const int32_t begin = end - count;
  const int32_t middle = begin + counts[first];
  if (begin < rank && rank <= middle) found = {first, begin, counts[first]};
  if (middle < rank && rank <= end) found = {first + 1, middle, counts[first + 1]};
  __syncthreads();
  const Bin bin = found;
  __syncthreads();  // its memory may become another variable's
  return bin;
}

// A key that exactly the `k` most likely tokens reach, 1 <= k <= vocab: its digits are chosen one
// after the other, from the top.
__device__ inline uint64_t KeyOfMostLikely(const Row& row, int32_t k) {
  constexpr int kDigitBits = 11;
  constexpr int kBins = 1 << kDigitBits;
  static_assert(kBins == 2 * kRowThreads);
  __shared__ int32_t counts[kBins];  // of digits, the largest first
  uint64_t key = 0;
  uint64_t known = 0;  // bits of `key` that are chosen
  for (int shift = 64;;) {
    const int bits = min(kDigitBits, shift);
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    shift -= bits;
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kRowThreads) counts[bin] = 0;
    __syncthreads();
    row.ForEach([&](float logit, int32_t token) {
      const uint64_t other = KeyOf(logit, token);
      if ((other & known) == key) atomicAdd(&counts[mask - (other >> shift & mask)], 1);
    });
    __syncthreads();
    const Bin bin = FindBin(counts, k);
    key |= (mask - bin.index) << shift;
    known |= mask << shift;
    k -= bin.before;
    if (bin.count == k) return key;
  }
}

__device__ inline void ReportTop(const Row& row, int32_t k, double log_total, int32_t* top_tokens,
                                 float* top_logprobs) {
  __shared__ uint64_t keys[kMaxTop];
  __shared__ int32_t num_keys;
  const uint64_t least = KeyOfMostLikely(row, k);
  if (threadIdx.x == 0) num_keys = 0;
  __syncthreads();
  row.ForEach([&](float logit, int32_t token) {
    const uint64_t key = KeyOf(logit, token);
    if (key >= least) keys[atomicAdd(&num_keys, 1)] = key;
  });
  __syncthreads();
  if (threadIdx.x >= k) return;
  const uint64_t key = keys[threadIdx.x];
  int rank = 0;
  for (int i = 0; i < k; ++i) rank += keys[i] > key ? 1 : 0;
  top_tokens[rank] = TokenOf(key);
  top_logprobs[rank] = LogProbability(LogitOf(key), log_total);
}

// Of the tokens that reach a key.
struct Share {
  int32_t count;
  double mass;
};
__device__ inline Share ShareOf(const Row& row, const Draw& draw, uint64_t least) {
  int32_t count = 0;
  float mass = 0.0f;
  row.ForEach([&](float logit, int32_t token) {
    if (KeyOf(logit, token) < least) return;
    ++count;
    mass += draw.Mass(logit);
  });
  return ReduceBlock<kRowThreads>(Share{count, mass}, [](const Share& a, const Share& b) {
    return Share{a.count + b.count, a.mass + b.mass};
  });
}

// The best of the tokens that reach both bounds; one does.
__device__ inline int32_t BestOf(const Row& row, const Draw& draw, uint64_t least,
                                 double least_scaled) {
  const auto takes_part = [&](float logit, int32_t token) {
    return KeyOf(logit, token) >= least && draw.Scaled(logit) >= least_scaled;
  };
  float rough = -INFINITY;
  row.ForEach([&](float logit, int32_t token) {
    if (takes_part(logit, token)) rough = fmaxf(rough, draw.RoughScore(logit, token));
  });
  rough = ReduceBlock<kRowThreads>(rough, Max()) - Draw::kMargin;
  Scored best = {-INFINITY, INT32_MAX};
  row.ForEach([&](float logit, int32_t token) {
    if (!takes_part(logit, token) || draw.RoughScore(logit, token) < rough) return;
    best = Better(best, draw.Score(logit, token));
  });
  return ReduceBlock<kRowThreads>(best, Better).token;
}

// The best of the tokens that top_k, top_p and min_p keep, given the best of all.
__device__ inline int32_t BestOfKept(const Row& row, const SampleParams& params, float peak,
                                     int32_t best) {
  const Draw draw(params, peak);
  const int32_t top_k = params.top_k > 0 ? min(params.top_k, row.vocab) : row.vocab;
  double mass = INFINITY;
  if (params.top_p < 1.0f) {
    const uint64_t least = top_k < row.vocab ? KeyOfMostLikely(row, top_k) : 0;
    mass = params.top_p * ShareOf(row, draw, least).mass;
  }
  const double least_scaled = draw.Scaled(peak) + log(static_cast<double>(params.min_p));
  while (true) {
    const float logit = Ordered(row.logits[best]);
    const uint64_t above = KeyOf(logit, best) + 1;
    const Share share = ShareOf(row, draw, above);
    const bool is_kept =
        share.count < top_k && share.mass < mass && draw.Scaled(logit) >= least_scaled;
    if (is_kept || share.count == 0) return best;
    best = BestOf(row, draw, above, least_scaled);
  }
}

}  // namespace everlong::cuda
