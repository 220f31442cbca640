// Attention of decoded tokens: few queries, one for every head of a group, and many keys, so that
// the time goes to reading them. The keys of a token and KV head are split among CTAs and these
// among warps. Softmax runs online in every warp (Milakov, Gimelshein 2018); the CTA that is last
// to finish merges what the CTAs of a token and head leave (Dao et al., Flash-Decoding, 2023). How
// keys are split is a function of how many there are.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/decode_few.h"
#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/decode_results.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda {
namespace decode {
namespace {

// Tiles of a rotary page, for which the query is turned once.
constexpr int kLongRun = 4;
constexpr int kMaxBlocks = 64;  // of a launch: bounds scratch memory

// A long run for each warp at least: parts cost time to merge, which counts where many tokens are
// decoded at a time.
template <class S>
__host__ __device__ constexpr int SplitsOf(int tiles) {
  return (tiles + S::kWarps * kLongRun - 1) / (S::kWarps * kLongRun);
}

// `heads` queries to [kHeads][kQueryStride], padded with zeros.
template <class S>
__device__ void StoreQuery(const uint16_t* q, int heads, int head_dim, uint16_t* to) {
  for (int i = threadIdx.x; i < kHeads * (S::kDim / 4); i += S::kThreads) {
    const int head = i / (S::kDim / 4);
    const int dim = i % (S::kDim / 4) * 4;
    const PaddedDim<S::kDim> at(dim, head_dim);
    uint2 four = {};
    if (head < heads && at.exists) {
      four = *reinterpret_cast<const uint2*>(q + head * head_dim + at.stored);
    }
    *reinterpret_cast<uint2*>(to + head * S::kQueryStride + dim) = four;
  }
}

// Starts to copy the turns of all places in a rotary page, those next to each other that lanes
// t = 0 .. 3 read at once.
template <class S>
__device__ void CopyTurns(const RopeTable& rope, int half_dim, float* to) {
  for (int i = threadIdx.x; i < kPageTokens * (S::kDim / 4); i += S::kThreads) {
    const int row = i / (S::kDim / 4);
    const int f = i % (S::kDim / 4);  // of pairs 2 f and 2 f + 1
    const int place = f / 16 * 16 + f % 4 * 4 + f / 4 % 4;
    CopyAsync<16>(SharedAddress(to + row * S::kTurnStride + 4 * place),
                  rope.offset + row * half_dim + 2 * f, !S::kPadded || 2 * f < half_dim);
  }
  EndCopies();
}

// Merges what the warps have folded into a part or, where there is only one, the results.
// `folded`: [S::kWarps][kHeads][kPartStride].
template <class S>
__device__ void MergeWarps(const AttentionArgs& args, const Results& results, const float* folded,
                           const float2 (&sums)[S::kWarps][kHeads], const Parts& parts,
                           int64_t part, bool only_one) {
  constexpr int kColumns = S::kDim / 4;
  for (int i = threadIdx.x; i < results.heads * kColumns; i += S::kThreads) {
    const int head = i / kColumns;
    const int dim = i % kColumns * 4;
    float max = -INFINITY;
    for (int w = 0; w < S::kWarps; ++w) max = fmaxf(max, sums[w][head].x);
    float4 out = {};
    float sum = 0.0f;
    for (int w = 0; w < S::kWarps; ++w) {
      const float weight = exp2f(sums[w][head].x - max);
      const float* from = folded + (w * kHeads + head) * S::kPartStride + dim;
      AddScaled(out, *reinterpret_cast<const float4*>(from), weight);
      sum += sums[w][head].y * weight;
    }
    if (only_one) {
      Finish<S>(args, results, head, dim, out, max, sum);
      continue;
    }
    reinterpret_cast<float4*>(parts.outs)[part * kHeads * kColumns + i] = out;
    if (dim == 0) parts.sums[part * kHeads + head] = {max, sum};
  }
}

// Weights of the parts of `splits` CTAs for a head, to `weights`; the total's largest score and
// sum.
__device__ inline float2 WeighParts(const float2* sums, int splits, float* weights) {
  const int lane = threadIdx.x % 32;
  float2 mine[kMaxSplits / 32];
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kMaxSplits / 32; ++i) {
    const int s = 32 * i + lane;
    mine[i] = s < splits ? __ldcg(&sums[s * kHeads]) : make_float2(-INFINITY, 0.0f);
    max = fmaxf(max, mine[i].x);
  }
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    max = fmaxf(max, __shfl_xor_sync(~0u, max, lanes));
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxSplits / 32; ++i) {
    const float weight = exp2f(mine[i].x - max);
    weights[32 * i + lane] = weight;
    total += mine[i].y * weight;
  }
  for (int lanes = 1; lanes < 32; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
  __syncwarp();
  return {max, total};
}

// Merges the parts of `splits` CTAs, a warp those of a head. Time goes to the latency of reading
// them, so many are read at once.
template <class S>
__device__ void MergeParts(const AttentionArgs& args, const Results& results, const float* outs,
                           const float2* sums, int splits) {
  constexpr int kAtOnce = 16;
  constexpr int kColumns = S::kDim / 4;
  __shared__ float weights[kHeads][kMaxSplits];
  for (int head = threadIdx.x / 32; head < results.heads; head += S::kWarps) {
    const float2 total = WeighParts(sums + head, splits, weights[head]);
    for (int column = threadIdx.x % 32; column < kColumns; column += 32) {
      const auto* part = reinterpret_cast<const float4*>(outs) + head * kColumns + column;
      float4 out = {};
      for (int first = 0; first < splits; first += kAtOnce) {
        float4 some[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int s = min(first + i, splits - 1);  // those too many have no weight
          some[i] = __ldcg(part + s * kHeads * kColumns);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) AddScaled(out, some[i], weights[head][first + i]);
      }
      Finish<S>(args, results, head, column * 4, out, total.x, total.y);
    }
  }
}

// Before it waits for the kernel ahead, a CTA reads what the step's upload brought and, unless
// lists change in this step, what was selected in an earlier one. Unless it serves all blocks, it
// leaves those that read few keys to AttendFew.
// Grid: (splits at most, KV heads times parts of their groups, blocks).
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kCtas)
    AttendDecoded(AttentionArgs args, CacheLayer cache, Step step, const QueryBlock* blocks,
                  RopeTable rope, Parts parts, int max_splits, bool lists_change, bool all) {
  extern __shared__ __align__(16) std::byte shared[];
  auto* queries = reinterpret_cast<uint16_t*>(shared);
  auto* scratch = reinterpret_cast<float*>(queries + (1 + S::kWarps) * S::kQueryElements);
  __shared__ Reading reading;
  __shared__ float2 sums[S::kWarps][kHeads];
  const int split = blockIdx.x;
  const int kv_head = blockIdx.y / cache.group_parts;
  const int warp = threadIdx.x / 32;
  const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
  const QueryBlock& block = blocks[blockIdx.z];
  const Results results = ResultsOf(block, cache, blockIdx.y);
  LetNextStart();
  if (lists_change) WaitForPrevious();
  if (threadIdx.x == 0) reading = ReadingOf(args, cache, step, block, kv_head);
  __syncthreads();
  const int splits = min(SplitsOf<S>(reading.num_tiles), max_splits);
  const int workers = splits * S::kWarps;
  // Long runs where they leave no worker with much more than others have.
  const bool long_runs = splits < max_splits || reading.num_tiles >= 4 * kLongRun * workers;
  const int run = long_runs ? kLongRun : 1;
  if (split >= splits || (!all && reading.few())) {
    WaitForPrevious();
    return;
  }
  Tiles tiles(reading, split * S::kWarps + warp, workers, run);
  Tile tile = tiles.Next();
  tiles.Prefetch();
  const bool turns = reading.rotate && (reading.clip_distance == kRaw ||
                                        split * S::kWarps * run < reading.window_tiles);
  if (turns) CopyTurns<S>(rope, head_dim / 2, scratch);
  WaitForPrevious();

  Keys<S> keys;
  Values<S> values;
  keys.Load(tile, head_dim);
  values.Load(tile, head_dim);
  StoreQuery<S>(static_cast<const uint16_t*>(args.q) + results.row * args.q_stride +
                    results.first_head * head_dim,
                results.heads, head_dim, queries);
  AwaitCopies<0>();
  __syncthreads();

  const float factor = args.scale * kLog2e * (args.rotate ? rope.scale * rope.scale : 1.0f);
  Query<S> query(queries, queries + (1 + warp) * S::kQueryElements, rope, head_dim / 2);
  Folded<S> folded;
  while (tile.exists()) {
    const Tile next = tiles.Next();
    Scores scores;
    Score(keys, tile, scratch, factor, query, scores);
    keys.Load(next, head_dim);
    folded.Weigh(scores);
    folded.Add(values, scores);
    values.Load(next, head_dim);
    tile = next;
  }

  __syncthreads();  // turns are no longer needed
  folded.Store(scratch + warp * kHeads * S::kPartStride, sums[warp]);
  __syncthreads();
  const int64_t result = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int64_t first_part = result * gridDim.x;
  MergeWarps<S>(args, results, scratch, sums, parts, first_part + split, splits == 1);
  if (splits == 1 || !IsLast(parts.counters + result, splits)) return;
  MergeParts<S>(args, results, parts.outs + first_part * kHeads * S::kDim,
                parts.sums + first_part * kHeads, splits);
}

int64_t Ceil(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit;
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
            Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const CacheLayer cache = LayerOf(args, kHeads);
  const int results =
      args.cache.kv_heads * cache.group_parts;  // CTAs that share a split of a token
  const int max_splits = std::clamp(S::kCtas * context.num_sms / results, 1, kMaxSplits);
  // No block is read twice; window and the rest may each leave half a tile.
  const int64_t max_tiles = Ceil(step.max_length, kTileBlocks * kBlockTokens) + 1;
  const int splits = std::min(SplitsOf<S>(static_cast<int>(max_tiles)), max_splits);
  const int64_t all_results = int64_t{results} * std::min(plan.num_decode_blocks, kMaxBlocks);
  const Parts parts = PartsOf(all_results, splits, S::kDim, context);
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(AttendDecoded<S>, S::kSharedBytes);
  for (int first = 0; first < plan.num_decode_blocks; first += kMaxBlocks) {
    const int blocks = std::min(plan.num_decode_blocks - first, kMaxBlocks);
    LaunchDependent(context, AttendDecoded<S>, dim3(splits, results, blocks), S::kThreads,
                    S::kSharedBytes, args, cache, step, plan.blocks + first, rope, parts,
                    max_splits, plan.decode.hip || plan.decode.scan, all);
  }
}

template <class Kv>
void LaunchFor(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
               Context& context) {
  switch (args.cache.head_dim) {
    case 64:
      return Launch<Shape<Kv, 64, false>>(args, step, all, rope, context);
    case 128:
      return Launch<Shape<Kv, 128, false>>(args, step, all, rope, context);
    default:
      return Launch<Shape<Kv, 256, true>>(args, step, all, rope, context);
  }
}

}  // namespace
}  // namespace decode

void DecodeAttention(const AttentionArgs& args, const Step& step, Context& context) {
  const KvCache& cache = args.cache;
  EVERLONG_CHECK(args.q_heads % cache.kv_heads == 0);
  EVERLONG_CHECK(cache.head_dim % 8 == 0 && cache.head_dim <= 256 && args.q_stride % 4 == 0);
  EVERLONG_CHECK(cache.type == DType::kBF16 || cache.type == DType::kF8);
  const StepPlan& plan = step.plans[args.plan];
  const RopeTable rope = args.rotate ? context.ropes.Get(args.rope, cache.head_dim) : RopeTable();
  const bool few = plan.few && decode::ServesFew(args, context);
  if (few) decode::AttendFew(args, step, /*all=*/!plan.many, rope, context);
  if (few && !plan.many) return;
  if (cache.type == DType::kBF16) {
    decode::LaunchFor<Bf16Kv>(args, step, /*all=*/!few, rope, context);
  } else {
    decode::LaunchFor<F8Kv>(args, step, /*all=*/!few, rope, context);
  }
}

}  // namespace everlong::cuda
