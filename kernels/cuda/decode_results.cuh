// Results of decoded tokens, from what CTAs have folded.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/mma.cuh"

namespace everlong::cuda::decode {

// Where CTAs leave what they have folded, [block of the launch][heads that a CTA serves][split].
struct Parts {
  float* outs;         // [kHeads][kDim], of weights relative to the sums' scores
  float2* sums;        // [kHeads]: a score, and the sum of weights relative to it
  uint32_t* counters;  // of all splits: CTAs that are done; zero between launches
};

// For `results` query blocks and groups of heads, each of which `splits` CTAs share.
inline Parts PartsOf(int64_t results, int splits, int dim, Context& context) {
  const int64_t heads = results * splits * kHeads;
  auto* outs = context.scratch.Get<float>(Scratch::kAttentionParts, heads * (dim + 2));
  return {.outs = outs,
          .sums = reinterpret_cast<float2*>(outs + heads * dim),
          .counters = context.scratch.Get<uint32_t>(Scratch::kAttentionCounters, results)};
}

// Where a CTA's results go: heads [first_head, first_head + heads) of a row.
struct Results {
  int64_t row;
  int first_head;
  int heads;
};

// Of the `part`th CTA along the heads of a query block.
__device__ inline Results ResultsOf(const QueryBlock& block, const CacheLayer& cache, int part) {
  const int in_group = part % cache.group_parts * kHeads;
  return {.row = block.first_row,
          .first_head = part / cache.group_parts * cache.group + in_group,
          .heads = min(kHeads, cache.group - in_group)};
}

// Four padded dimensions of one of the heads.
template <class S>
__device__ void Finish(const AttentionArgs& args, const Results& results, int head, int dim,
                       float4 out, float max, float sum) {
  const int64_t result = results.row * args.q_heads + results.first_head + head;
  if (dim == 0 && args.lse != nullptr) args.lse[result] = (max + log2f(sum)) * kLn2;
  const PaddedDim<S::kDim> at(dim, args.cache.head_dim);
  if (!at.exists) return;
  const float factor = 1.0f / sum;
  auto* to = static_cast<uint16_t*>(args.out) + result * args.cache.head_dim + at.stored;
  *reinterpret_cast<uint2*>(to) = {PackBf16(out.x * factor, out.y * factor),
                                   PackBf16(out.z * factor, out.w * factor)};
}

__device__ inline void AddScaled(float4& sum, float4 x, float factor) {
  sum.x += x.x * factor;
  sum.y += x.y * factor;
  sum.z += x.z * factor;
  sum.w += x.w * factor;
}

// Whether this CTA is the last of `ctas` to come here; what the others stored before is then seen.
__device__ inline bool IsLast(uint32_t* counter, uint32_t ctas) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == ctas - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace everlong::cuda::decode
