// Attention of decoded tokens: few queries, one for every head of a group, and many keys, so that
// the time goes to reading them. The keys of a token and KV head are split evenly among the warps
// of some CTAs. Softmax runs online in every warp (Milakov, Gimelshein 2018); the CTA that is last
// to finish merges what the CTAs of a token and head leave (Dao et al., Flash-Decoding, 2023). How
// keys are split is a function of how many there are.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/decode_few.h"
#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/decode_results.cuh"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda {
namespace decode {
namespace {

constexpr int kMaxSplits = 128;
constexpr int kMaxBlocks = 64;  // of a launch: bounds scratch memory
// CTAs cost time to begin and to merge, which counts where many tokens are decoded at a time: a
// warp has about so many tiles at least.
constexpr int kFewTiles = 6;

// A CTA has up to kWarps, as shared memory has room for them; kCtas share an SM. Registers bound
// both: the results, keys and values of a warp take many.
template <class S>
struct Cta {
  static constexpr int kWarps = S::kPadded ? 4 : S::kDim == 64 ? 8 : 6;
  static constexpr int kCtas = S::kPadded ? 1 : 2;
  static constexpr int kTurnBytes = kPageTokens * S::kDim * 4;
  static constexpr int kWarpBytes = Query<S>::kOwnBytes + Incoming<S>::kBytes;

  // Turns and the query that is given, then of each warp what it has turned of it and its tile.
  static constexpr int SharedBytes(int warps) {
    return kTurnBytes + Query<S>::kRawBytes + warps * kWarpBytes;
  }
  // What warps have folded takes the place of all that.
  static_assert(kWarps * kHeads * S::kPartStride * 4 <= SharedBytes(kWarps));
};

// Starts to copy the turns of all places in a rotary page, those next to each other that lanes
// t = 0 .. 3 read at once, in an order in which neighbouring rows lie in different banks.
template <class S>
__device__ void CopyTurns(const RopeTable& rope, int half_dim, float4* to) {
  for (int i = threadIdx.x; i < kPageTokens * (S::kDim / 4); i += blockDim.x) {
    const int row = i / (S::kDim / 4);
    const int f = i % (S::kDim / 4);  // of pairs 2 f and 2 f + 1
    const int place = f / 16 * 16 + (f % 4 ^ row % 2) * 4 + f / 4 % 4;
    CopyAsync<16>(SharedAddress(to + row * (S::kDim / 4) + place),
                  rope.offset + row * half_dim + 2 * f, !S::kPadded || 2 * f < half_dim);
  }
}

// Merges what the warps have folded into a part or, where there is only one, the results.
// `folded`: [warps][kHeads][kPartStride].
template <class S>
__device__ void MergeWarps(const AttentionArgs& args, const Results& results, const float* folded,
                           const float2 (&sums)[Cta<S>::kWarps][kHeads], const Parts& parts,
                           int64_t part, bool only_one) {
  constexpr int kColumns = S::kDim / 4;
  const int warps = static_cast<int>(blockDim.x / 32);
  for (int i = threadIdx.x; i < results.heads * kColumns; i += blockDim.x) {
    const int head = i / kColumns;
    const int dim = i % kColumns * 4;
    float max = -INFINITY;
    for (int w = 0; w < warps; ++w) max = fmaxf(max, sums[w][head].x);
    float4 out = {};
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) {
      const float weight = Exp2(sums[w][head].x - max);
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
    const float weight = Exp2(mine[i].x - max);
    weights[32 * i + lane] = weight;
    total += mine[i].y * weight;
  }
  for (int lanes = 1; lanes < 32; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
  __syncwarp();
  return {max, total};
}

// Merges the parts of `splits` CTAs, a warp those of a head. Time goes to the latency of reading
// them, so many are read at once. `all_weights`: shared memory for [kHeads][kMaxSplits].
template <class S>
__device__ void MergeParts(const AttentionArgs& args, const Results& results, const float* outs,
                           const float2* sums, int splits, float* all_weights) {
  constexpr int kAtOnce = 24;
  constexpr int kColumns = S::kDim / 4;
  for (int head = threadIdx.x / 32; head < results.heads; head += blockDim.x / 32) {
    float* const weights = all_weights + head * kMaxSplits;
    const float2 total = WeighParts(sums + head, splits, weights);
    for (int column = threadIdx.x % 32; column < kColumns; column += 32) {
      const auto* part = reinterpret_cast<const float4*>(outs) + head * kColumns + column;
      float4 out = {};
      for (int first = 0; first < splits; first += kAtOnce) {
        float4 some[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i < splits) some[i] = __ldcg(part + (first + i) * kHeads * kColumns);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i < splits) AddScaled(out, some[i], weights[first + i]);
        }
      }
      Finish<S>(args, results, head, column * 4, out, total.x, total.y);
    }
  }
}

// Folds a warp's tiles, of which the first is on its way.
template <class S>
__device__ void FoldTiles(Tiles& tiles, Tile tile, const float4* turns, float factor,
                          const Incoming<S>& incoming, Query<S>& query, Folded<S>& folded) {
  while (tile.exists()) {
    const Tile next = tiles.Next();
    Keys<S> keys;
    incoming.Take(keys);
    query.Turn(tile.blocks[0].distance);
    query.Expect(next.blocks[0].distance);
    incoming.StartKeys(next);
    Scores scores;
    Score(keys, tile, turns, factor, query, scores);
    folded.Weigh(scores);
    Values<S> values;
    incoming.Take(tile, values);
    incoming.StartValues(next);
    folded.Add(values, scores);
    tile = next;
  }
  AwaitCopies<0>();
}

// Before it waits for the kernel ahead, a CTA reads what the step's upload brought and, unless
// lists change in this step, what was selected in an earlier one, and if the step has no other
// tokens the first tiles but the one that it stores to. Unless it serves all blocks, it leaves
// those that read few keys to AttendFew.
// Grid: (splits at most, KV heads times parts of their groups, blocks).
template <class S>
__global__ void __launch_bounds__(32 * Cta<S>::kWarps, Cta<S>::kCtas)
    AttendDecoded(AttentionArgs args, CacheLayer cache, Step step, const QueryBlock* blocks,
                  RopeTable rope, Parts parts, int max_splits, bool lists_change, bool all) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ Reading reading;
  __shared__ float2 sums[Cta<S>::kWarps][kHeads];
  const int split = blockIdx.x;
  const int kv_head = blockIdx.y / cache.group_parts;
  const int warp = threadIdx.x / 32;
  const int warps = static_cast<int>(blockDim.x / 32);
  const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
  const QueryBlock& block = blocks[blockIdx.z];
  const Results results = ResultsOf(block, cache, blockIdx.y);
  LetNextStart();
  if (lists_change) WaitForPrevious();
  if (threadIdx.x == 0) reading = ReadingOf(args, cache, step, block, kv_head);
  __syncthreads();
  const int splits = min(CeilDiv(reading.num_tiles, warps * kFewTiles), max_splits);
  if (split >= splits || (!all && reading.few())) {
    WaitForPrevious();
    return;
  }
  const auto first_of = [&](int worker) {
    return static_cast<int>(int64_t{reading.num_tiles} * worker / (splits * warps));
  };
  const int worker = split * warps + warp;
  Tiles tiles(reading, first_of(worker), 1, first_of(worker + 1));
  const Tile tile = tiles.Next();
  auto* const turns = reinterpret_cast<float4*>(shared);
  const bool turn = reading.rotate && (reading.clip_distance == kRaw ||
                                       first_of(split * warps) < reading.window_tiles);
  if (turn) CopyTurns<S>(rope, head_dim / 2, turns);
  EndCopies();
  std::byte* const own = shared + Cta<S>::SharedBytes(warp);
  Query<S> query(shared + Cta<S>::kTurnBytes, own, rope, head_dim / 2, results.heads);
  const Incoming<S> incoming(own + Query<S>::kOwnBytes, head_dim);
  const auto start = [&] {
    query.Expect(tile.blocks[0].distance);
    incoming.StartKeys(tile);
    incoming.StartValues(tile);
  };
  // The step stores to the token's own tile, the window's last, and to others for other tokens.
  const bool stored = step.num_tokens == 1 && first_of(worker) != reading.window_tiles - 1;
  if (stored) start();
  query.Prepare(tile.blocks[0].distance);
  WaitForPrevious();

  if (!stored) start();
  query.StoreRaw(static_cast<const uint16_t*>(args.q) + results.row * args.q_stride +
                     results.first_head * head_dim,
                 results.heads);
  AwaitCopies<2>();  // of turns
  __syncthreads();
  const float factor = args.scale * kLog2e * (args.rotate ? rope.scale * rope.scale : 1.0f);
  Folded<S> folded;
  FoldTiles(tiles, tile, turns, factor, incoming, query, folded);

  __syncthreads();
  auto* const out = reinterpret_cast<float*>(shared);
  folded.Store(out + warp * kHeads * S::kPartStride, sums[warp]);
  __syncthreads();
  const int64_t result = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int64_t first_part = result * gridDim.x;
  MergeWarps<S>(args, results, out, sums, parts, first_part + split, splits == 1);
  if (splits == 1 || !IsLast(parts.counters + result, splits)) return;
  MergeParts<S>(args, results, parts.outs + first_part * kHeads * S::kDim,
                parts.sums + first_part * kHeads, splits, out);
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
            Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const CacheLayer cache = LayerOf(args, kHeads);
  const int warps =
      std::min(Cta<S>::kWarps, (MaxSharedBytes() - Cta<S>::SharedBytes(0)) / Cta<S>::kWarpBytes);
  EVERLONG_CHECK(warps > 0);
  const int bytes = Cta<S>::SharedBytes(warps);
  const int results =
      args.cache.kv_heads * cache.group_parts;  // CTAs that share a split of a token
  const int max_splits = std::clamp(Cta<S>::kCtas * context.num_sms / results, 1, kMaxSplits);
  // No block is read twice; window and the rest may each leave half a tile.
  const int max_tiles = CeilDiv(step.max_length, kTileBlocks * kBlockTokens) + 1;
  const int splits = std::min(CeilDiv(max_tiles, warps * kFewTiles), max_splits);
  const int64_t all_results = int64_t{results} * std::min(plan.num_decode_blocks, kMaxBlocks);
  const Parts parts = PartsOf(all_results, splits, S::kDim, context);
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(AttendDecoded<S>, bytes);
  for (int first = 0; first < plan.num_decode_blocks; first += kMaxBlocks) {
    const int blocks = std::min(plan.num_decode_blocks - first, kMaxBlocks);
    LaunchDependent(context, AttendDecoded<S>, dim3(splits, results, blocks), 32 * warps, bytes,
                    args, cache, step, plan.blocks + first, rope, parts, max_splits,
                    plan.decode.hip || plan.decode.scan, all);
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
