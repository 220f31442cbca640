// Attention of the query blocks of prompts: many queries for the same keys, so that the time goes
// to matrix products. A CTA takes the query heads of a KV head's group for some tokens of a block;
// its warps keep their rows' queries and results in registers while tiles of keys and values come
// by in shared memory (Dao: FlashAttention-2, 2023). Tiles begin at the start of what a block
// reads, and in the window at its start, wherever the rows are, so that a row folds the same keys
// together whatever rows are there beside it.
#include <cstddef>

#include "kernels/check.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/prompt_fold.cuh"
#include "kernels/cuda/prompt_hopper.h"
#include "kernels/cuda/prompt_tiles.cuh"

namespace everlong::cuda {
namespace prompt {
namespace {

// CTA (KV head, tokens of the block, block). The latest tokens, which may see most, begin first.
// Of the two warps that share a scheduler, one prepares the next tile before it folds this one and
// the other one after it, so that one of them keeps the tensor cores busy.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kCtas)
    Attend(AttentionArgs args, Step step, RopeTable rope, const QueryBlock* blocks) {
  extern __shared__ __align__(1024) std::byte shared[];
  Reading& reading = *reinterpret_cast<Reading*>(shared + S::kSharedBytes);
  {
    const QueryBlock& block = blocks[blockIdx.z];
    const int tokens = S::kRows / (args.q_heads / args.cache.kv_heads);
    const int first = (CeilDiv(block.num_rows, tokens) - 1 - static_cast<int>(blockIdx.y)) * tokens;
    if (first < 0) return;
    if (threadIdx.x == 0) {
      reading =
          ReadingOf<S>(args, step, block, blockIdx.x, first, min(tokens, block.num_rows - first));
    }
  }
  __syncthreads();
  const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
  Tiles<S> tiles(reading, shared, rope, head_dim);
  for (int tile = 0; tile < S::kStages - 1; ++tile) tiles.Request(tile);
  __syncthreads();  // turns of tokens
  tiles.Prepare(0);

  const bool prepares_first = S::kStages > 2 && threadIdx.x < S::kThreads / 2;
  const float factor = args.scale * kLog2e * (reading.rotate ? rope.scale * rope.scale : 1.0f);
  const WarpRows<S> rows(reading);
  Query<S> query;
  Folded<S> folded;
  const int num_tiles = reading.num_tiles;
  for (int tile = 0; tile < num_tiles; ++tile) {
    __syncthreads();
    tiles.Request(tile + S::kStages - 1);
    if (prepares_first) tiles.Prepare(tile + 1);
    if (tile == 0 || (tile == reading.far_tiles && reading.clip_distance != kRaw)) {
      query.Load(args, reading, rope, tile < reading.far_tiles);
    }
    Fold(reading, rows, tiles, query, tile, factor, folded);
    if (!prepares_first) tiles.Prepare(tile + 1);
  }
  folded.Store(args, reading);
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, const RopeTable& rope, Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const dim3 grid = GridOf(args, plan, S::kRows);
  constexpr int kBytes = S::kSharedBytes + sizeof(Reading);
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(Attend<S>, kBytes);
  Attend<S><<<grid, S::kThreads, kBytes, context.stream>>>(args, step, rope,
                                                           plan.blocks + plan.num_decode_blocks);
  EVERLONG_CUDA_LAUNCHED("prompt::Attend");
}

// Small groups do not fill the rows of eight warps, and only data centres' GPUs from Hopper on have
// the shared memory for three tiles.
template <class Kv>
void LaunchFor(const AttentionArgs& args, const Step& step, const RopeTable& rope,
               Context& context) {
  const bool roomy = context.architecture >= 90 && context.architecture < 120;
  const bool large = roomy && args.q_heads / args.cache.kv_heads > 2;
  switch (args.cache.head_dim) {
    case 64:
      if (large) return Launch<Shape<Kv, 64, false, 8, 3>>(args, step, rope, context);
      return Launch<Shape<Kv, 64, false, 4, 2>>(args, step, rope, context);
    case 128:
      if (large) return Launch<Shape<Kv, 128, false, 8, 3>>(args, step, rope, context);
      return Launch<Shape<Kv, 128, false, 4, 2>>(args, step, rope, context);
    default:
      return Launch<Shape<Kv, 256, true, 4, 2>>(args, step, rope, context);
  }
}

}  // namespace
}  // namespace prompt

void PromptAttention(const AttentionArgs& args, const Step& step, Context& context) {
  const KvCache& cache = args.cache;
  EVERLONG_CHECK(cache.head_dim % 8 == 0 && cache.head_dim <= 256);
  EVERLONG_CHECK(args.q_heads % cache.kv_heads == 0 && args.q_heads / cache.kv_heads <= 16);
  EVERLONG_CHECK(args.scale > 0.0f);
  EVERLONG_CHECK(args.q_stride % 4 == 0);
  RopeTable rope;
  if (args.rotate) rope = context.ropes.Get(args.rope, cache.head_dim);
  if (HasHopperPromptAttention(args, context)) {
    HopperPromptAttention(args, step, rope, context);
  } else if (cache.type == DType::kF8) {
    prompt::LaunchFor<F8Kv>(args, step, rope, context);
  } else {
    EVERLONG_CHECK(cache.type == DType::kBF16);
    prompt::LaunchFor<Bf16Kv>(args, step, rope, context);
  }
}

}  // namespace everlong::cuda
