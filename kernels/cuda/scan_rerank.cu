// The best of a scan's candidates, scored again with stored keys.
#include <algorithm>

#include "kernels/cuda/choose_keys.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/key_elements.cuh"
#include "kernels/cuda/scanning.h"

namespace everlong::cuda::scan {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxCtas = 64;  // of a list

// Of the page that candidate `i` is in.
__device__ uint32_t* PageKeyOf(const Scanning& s, int list, int i) {
  const int first = FirstCandidate(s.blocks[list / s.cache.kv_heads]);
  return s.page_keys + list * s.page_stride + (first + i) / kPageBlocks - first / kPageBlocks;
}

__global__ void __launch_bounds__(kThreads) ClearScoresKernel(const Scanning s) {
  const auto list = static_cast<int>(blockIdx.y);
  if (s.rerank_keeps[list] == 0) return;
  float* scores = s.scores + list * s.score_stride;
  const auto first = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  for (int i = first; i < s.counts[list]; i += static_cast<int>(gridDim.x) * kThreads) {
    scores[i] = -INFINITY;
    // Every page has a candidate that is the first or the first of its page.
    const int block = FirstCandidate(s.blocks[list / s.cache.kv_heads]) + i;
    if (i == 0 || block % kPageBlocks == 0) *PageKeyOf(s, list, i) = 0;
  }
}

template <class Kv>
__device__ float Dot(const StoredKey<Kv>& key, const float* row, int head_dim) {
  float sum = 0.0f;
#pragma unroll 4
  for (int dim = 0; dim < head_dim; dim += 4) {
    const float4 k = key.Four(dim);
    const float4 r = *reinterpret_cast<const float4*>(row + dim);
    sum = fmaf(k.x, r.x, sum);
    sum = fmaf(k.y, r.y, sum);
    sum = fmaf(k.z, r.z, sum);
    sum = fmaf(k.w, r.w, sum);
  }
  return sum * key.scale;
}

// A warp for a KV block: a lane has one token and every fourth row.
template <class Kv>
__global__ void __launch_bounds__(kThreads) ScoreWithStoredKeysKernel(const Scanning s) {
  const auto list = static_cast<int>(blockIdx.y);
  const int count = s.num_reranked[list];
  const auto warp = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= count) return;
  const QueryBlock& block = s.blocks[list / s.cache.kv_heads];
  const int32_t* pages = s.pages + s.page_begin[block.sequence];
  const int first_head = list % s.cache.kv_heads;
  const int num_heads = s.selects[block.select].all_heads ? s.cache.kv_heads : 1;
  const int num_rows = s.NumRows(block);
  for (int i = warp; i < count; i += static_cast<int>(gridDim.x) * kWarps) {
    const int32_t candidate = s.reranked[list * s.rerank_stride + i];
    const int32_t number = FirstCandidate(block) + candidate;
    const int64_t page = pages[number / kPageBlocks];
    const int token = number % kPageBlocks * kBlockTokens + lane % kBlockTokens;
    float best = -INFINITY;
    for (int head = 0; head < num_heads; ++head) {
      const auto key = StoredKey<Kv>::At(s.cache, page, first_head + head, token);
      const float* rows = s.rows + (list + head) * s.row_stride * s.cache.head_dim;
      for (int row = lane / kBlockTokens; row < num_rows; row += 32 / kBlockTokens) {
        best = fmaxf(best, Dot(key, rows + int64_t{row} * s.cache.head_dim, s.cache.head_dim));
      }
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      best = fmaxf(best, __shfl_xor_sync(~0u, best, lanes));
    }
    if (lane != 0) continue;
    s.scores[list * s.score_stride + candidate] = best;
    atomicMax(PageKeyOf(s, list, candidate), KeyOf(best));
  }
}

dim3 Grid(int64_t items, int64_t cta_items, int64_t lists) {
  const int64_t ctas = std::min(int64_t{CeilDiv(items, cta_items)}, kMaxCtas);
  return dim3(static_cast<unsigned>(ctas), static_cast<unsigned>(lists));
}

}  // namespace

void ScoreWithStoredKeys(const Scanning& s, int64_t max_candidates, const Context& context) {
  ClearScoresKernel<<<Grid(max_candidates, kThreads, s.num_lists()), kThreads, 0, context.stream>>>(
      s);
  EVERLONG_CUDA_LAUNCHED("scan::ClearScoresKernel");
  const auto kernel = s.cache.type == DType::kF8 ? ScoreWithStoredKeysKernel<F8Kv>
                                                 : ScoreWithStoredKeysKernel<Bf16Kv>;
  kernel<<<Grid(s.rerank_stride, kWarps, s.num_lists()), kThreads, 0, context.stream>>>(s);
  EVERLONG_CUDA_LAUNCHED("scan::ScoreWithStoredKeysKernel");
}

}  // namespace everlong::cuda::scan
