// The keys that a decoded token reads of a KV head are shared by the warps of some CTAs, and all
// are on their way to shared memory at once and turned, if possible before the kernel ahead has
// ended. A CTA takes no more than half of an SM, so that the next launch's begins beside it. The
// one that is last to finish merges what they have folded. How keys are shared is a function of how
// many there are.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/decode_few.h"
#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/decode_results.cuh"
#include "kernels/cuda/decode_slots.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"

namespace everlong::cuda::decode {
namespace {

constexpr int kCtas = 16;  // that share the keys of a token and KV head
constexpr int kWarps = 7;  // of a CTA
constexpr int kThreads = 32 * kWarps;
constexpr int kWorkers = kCtas * kWarps;
constexpr int kSlots = 2;       // of a warp
constexpr int kMaxBlocks = 64;  // of a launch: bounds scratch memory

// A warp's shared memory: its slots, then what it has folded.
template <class S>
constexpr int kWarpBytes = std::max(kSlots* Slot<S>::kBytes, kHeads* S::kPartStride * 4);

template <class S>
constexpr int kColumns = S::kDim / 4;  // of a head

// The heads of a group as the second operand, in registers: lane 4 g + t has of head g the
// dimensions that it has of keys.
template <class S>
class OwnQuery {
 public:
  // Reads what turns the query by the distances that are needed first.
  __device__ OwnQuery(const RopeTable& rope, int first, int second)
      : rope_(rope), distance_(first), second_distance_(second) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      if (first != kRaw) first_turns_[i] = TurnsAt(i, first);
      if (second != kRaw) second_turns_[i] = TurnsAt(i, second);
    }
  }

  // `q`: [heads][kDim], which stay there.
  __device__ void Load(const uint16_t* q, int heads) {
    q_ = q;
    heads_ = heads;
    Read(words_);
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) second_[j] = words_[j];
    if (distance_ != kRaw) TurnBy([&](int i) { return first_turns_[i]; }, words_);
    if (second_distance_ != kRaw) TurnBy([&](int i) { return second_turns_[i]; }, second_);
  }

  __device__ void Turn(int distance) {
    if (distance == distance_) return;
    distance_ = distance;
    if (distance == second_distance_) {
#pragma unroll
      for (int j = 0; j < S::kDim / 32; ++j) words_[j] = second_[j];
      return;
    }
    Read(words_);
    if (distance != kRaw) TurnBy([&](int i) { return TurnsAt(i, distance); }, words_);
  }

  __device__ Words<4> Get(int j) const {
    return words_[j];
  }

 private:
  static constexpr int kTurns = S::kDim / 16;
  using QueryWords = Words<4>[S::kDim / 32];

  __device__ float4 TurnsAt(int i, int distance) const {
    const int pair = i / 4 * 32 + threadIdx.x % 4 * 8 + i % 4 * 2;
    return TurnsOf(rope_, S::kDim / 2, distance, pair);
  }

  template <class Turns>
  __device__ static void TurnBy(const Turns& turns, QueryWords& words) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int j = i / 4;
      cuda::Turn(words[j].w[i % 4], words[j + S::kDim / 64].w[i % 4], turns(i));
    }
  }

  __device__ void Read(QueryWords& words) const {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) {
      words[j] = {};
      if (g >= heads_) continue;
      const auto* from = reinterpret_cast<const uint2*>(q_ + g * S::kDim + 32 * j + 8 * t);
      const uint2 low = __ldcg(from);
      const uint2 high = __ldcg(from + 1);
      words[j] = {{low.x, low.y, high.x, high.y}};
    }
  }

  const RopeTable& rope_;
  const uint16_t* q_ = nullptr;
  int heads_ = 0;
  int distance_;
  int second_distance_;
  float4 first_turns_[kTurns];
  float4 second_turns_[kTurns];
  QueryWords words_;
  QueryWords second_;
};

// A CTA without tiles has folded nothing.
__device__ inline float WeightOf(float max, float all) {
  return max == -INFINITY ? 0.0f : Exp2(max - all);
}

// Merges four dimensions of `kParts` parts that lie some bytes apart, as do their sums.
template <int kParts, class LoadOut, class LoadSum>
__device__ float4 Merge(const LoadOut& out, const LoadSum& sum, float2& total) {
  float4 outs[kParts];
  float2 sums[kParts];
  total = {-INFINITY, 0.0f};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    outs[i] = out(i);
    sums[i] = sum(i);
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) total.x = fmaxf(total.x, sums[i].x);
  float4 merged = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const float weight = WeightOf(sums[i].x, total.x);
    AddScaled(merged, outs[i], weight);
    total.y += sums[i].y * weight;
  }
  return merged;
}

// Merges what warps have folded into the CTA's part.
template <class S>
__device__ void MergeWarps(const std::byte* shared, const float2 (&sums)[kWarps][kHeads], int heads,
                           const Parts& parts, int64_t part) {
  for (int i = threadIdx.x; i < heads * kColumns<S>; i += kThreads) {
    const int head = i / kColumns<S>;
    const int at = head * (S::kPartStride / 4) + i % kColumns<S>;
    float2 total;
    const float4 out = Merge<kWarps>(
        [&](int w) { return reinterpret_cast<const float4*>(shared + w * kWarpBytes<S>)[at]; },
        [&](int w) { return sums[w][head]; }, total);
    reinterpret_cast<float4*>(parts.outs)[part * kHeads * kColumns<S> + i] = out;
    if (i % kColumns<S> == 0) parts.sums[part * kHeads + head] = total;
  }
}

// Merges the parts from `first` on into results.
template <class S>
__device__ void MergeCtas(const AttentionArgs& args, const Results& results, const Parts& parts,
                          int64_t first) {
  const auto* outs = reinterpret_cast<const float4*>(parts.outs) + first * kHeads * kColumns<S>;
  const float2* sums = parts.sums + first * kHeads;
  for (int i = threadIdx.x; i < results.heads * kColumns<S>; i += kThreads) {
    const int head = i / kColumns<S>;
    float2 total;
    const float4 out =
        Merge<kCtas>([&](int c) { return __ldcg(outs + c * kHeads * kColumns<S> + i); },
                     [&](int c) { return __ldcg(sums + c * kHeads + head); }, total);
    Finish<S>(args, results, head, i % kColumns<S> * 4, out, total.x, total.y);
  }
}

// Folds a tile whose keys are turned.
template <class S>
__device__ void Fold(const Tile& tile, const std::byte* slot, float factor, OwnQuery<S>& query,
                     Folded<S>& folded) {
  Scores scores;
  query.Turn(tile.blocks[0].distance);
  MultiplyKeys<S>(slot, query, scores);
  if (tile.blocks[1].tokens > 0 && tile.blocks[1].distance != tile.blocks[0].distance) {
    Scores second;
    query.Turn(tile.blocks[1].distance);
    MultiplyKeys<S>(slot, query, second);
    scores[2] = second[2];
    scores[3] = second[3];
  }
  ScaleScores<S>(slot, tile, factor, scores);
  folded.Weigh(scores);
  Values<S> values;
  LoadValues<S>(slot, tile, values);
  folded.Add(values, scores);
}

// Before it waits for the kernel ahead, a CTA reads what was written before the step: what its
// upload brought, unless lists change what was selected, and if the step has no other tokens all
// keys but those beside the token's own.
// Grid: (kCtas, KV heads times parts of their groups, blocks).
template <class S>
__global__ void __launch_bounds__(kThreads, 2)
    AttendFewKeys(AttentionArgs args, CacheLayer cache, Step step, const QueryBlock* blocks,
                  RopeTable rope, Parts parts, bool lists_change, bool all) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ Reading reading;
  __shared__ float2 sums[kWarps][kHeads];
  const QueryBlock& block = blocks[blockIdx.z];
  const Results results = ResultsOf(block, cache, blockIdx.y);
  LetNextStart();
  if (lists_change) WaitForPrevious();
  if (threadIdx.x == 0) {
    reading = ReadingOf(args, cache, step, block, blockIdx.y / cache.group_parts);
  }
  __syncthreads();
  if (!all && !reading.few()) {
    WaitForPrevious();
    return;
  }
  const int warp = threadIdx.x / 32;
  const int worker = warp * kCtas + blockIdx.x;
  std::byte* slot = shared + warp * kWarpBytes<S>;
  std::byte* other = slot + Slot<S>::kBytes;
  Tiles tiles(reading, worker, kWorkers, reading.num_tiles);
  Tile tile = tiles.Next();
  Tile next = tiles.Next();
  const int own = reading.window_tiles - 1;  // the tile that the step stores to
  const bool alone = step.num_tokens == 1;
  const bool stored = alone && worker != own;
  const bool next_stored = alone && worker + kWorkers != own;
  if (stored) StartCopies<S>(tile, slot);
  if (next_stored) StartCopies<S>(next, other);
  OwnQuery<S> query(rope, tile.blocks[0].distance, next.blocks[0].distance);
  AwaitCopies<0>();
  __syncwarp();
  if (stored) TurnKeys<S>(tile, rope, slot);
  if (next_stored) TurnKeys<S>(next, rope, other);
  WaitForPrevious();

  if (!stored) StartCopies<S>(tile, slot);
  if (!next_stored) StartCopies<S>(next, other);
  query.Load(static_cast<const uint16_t*>(args.q) + results.row * args.q_stride +
                 results.first_head * S::kDim,
             results.heads);
  AwaitCopies<0>();
  __syncwarp();
  if (!stored) TurnKeys<S>(tile, rope, slot);
  if (!next_stored) TurnKeys<S>(next, rope, other);
  const float factor = args.scale * kLog2e * (args.rotate ? rope.scale * rope.scale : 1.0f);
  Folded<S> folded;
  for (int i = 0; tile.exists(); ++i) {
    if (i >= kSlots) {
      AwaitCopies<0>();
      __syncwarp();
      TurnKeys<S>(tile, rope, slot);
    }
    __syncwarp();
    Fold<S>(tile, slot, factor, query, folded);
    __syncwarp();
    tile = next;
    next = tiles.Next();
    if (next.exists()) StartCopies<S>(next, slot);
    std::byte* const free = slot;
    slot = other;
    other = free;
  }
  __syncwarp();  // slots without a tile are turned too
  folded.Store(reinterpret_cast<float*>(shared + warp * kWarpBytes<S>), sums[warp]);
  __syncthreads();
  const int64_t result = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  MergeWarps<S>(shared, sums, results.heads, parts, result * kCtas + blockIdx.x);
  if (!IsLast(parts.counters + result, kCtas)) return;
  MergeCtas<S>(args, results, parts, result * kCtas);
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
            Context& context) {
  constexpr int kBytes = kWarps * kWarpBytes<S>;
  const StepPlan& plan = step.plans[args.plan];
  const CacheLayer cache = LayerOf(args, kHeads);
  const int results = args.cache.kv_heads * cache.group_parts;
  const int64_t all_results = int64_t{results} * std::min(plan.num_decode_blocks, kMaxBlocks);
  const Parts parts = PartsOf(all_results, kCtas, S::kDim, context);
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(AttendFewKeys<S>, kBytes);
  for (int first = 0; first < plan.num_decode_blocks; first += kMaxBlocks) {
    const int blocks = std::min(plan.num_decode_blocks - first, kMaxBlocks);
    LaunchDependent(context, AttendFewKeys<S>, dim3(kCtas, results, blocks), kThreads, kBytes, args,
                    cache, step, plan.blocks + first, rope, parts,
                    plan.decode.hip || plan.decode.scan, all);
  }
}

template <class Kv>
void LaunchFor(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
               Context& context) {
  if (args.cache.head_dim == 64) {
    return Launch<Shape<Kv, 64, false>>(args, step, all, rope, context);
  }
  Launch<Shape<Kv, 128, false>>(args, step, all, rope, context);
}

}  // namespace

// Of the devices before sm_90 some have less shared memory than a CTA takes.
bool ServesFew(const AttentionArgs& args, const Context& context) {
  return context.architecture >= 90 && (args.cache.head_dim == 64 || args.cache.head_dim == 128);
}

void AttendFew(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
               Context& context) {
  if (args.cache.type == DType::kBF16) {
    return LaunchFor<Bf16Kv>(args, step, all, rope, context);
  }
  LaunchFor<F8Kv>(args, step, all, rope, context);
}

}  // namespace everlong::cuda::decode
