// prompt_attention.cu's work on Hopper's tensor cores, for groups that fill their rows. A CTA takes
// 256 rows: one warpgroup keeps a ring of tiles full and two fold them, each with two times 64 rows
// of which one's weights are computed while the other's products are (after Shah et al.:
// FlashAttention-3, 2024).
#include <cmath>
#include <cstddef>

#include "kernels/check.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/exponential.cuh"
#include "kernels/cuda/prompt_hopper.h"
#include "kernels/cuda/prompt_ring.cuh"
#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {
namespace prompt {
namespace {

using hopper::AwaitProducts;
using hopper::BeginProducts;
using hopper::EndProducts;

// The CTA's row of the lane in a tile of 64 rows of its warpgroup; lanes have another one 8 on.
template <class S>
__device__ int Row(int row_tile) {
  return threadIdx.x / hopper::kWarpgroupThreads * S::kGroupRows + row_tile * 64 +
         threadIdx.x % hopper::kWarpgroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
}

// Puts the warpgroup's query rows in shared memory, turned for keys of the window or, `far`, for
// others. Rows of no token keep what was there.
template <class S>
__device__ void LoadQueries(const AttentionArgs& args, const Reading& reading,
                            const RopeTable& rope, bool far, std::byte* queries) {
  constexpr int kChunks = S::kDim / 16;  // of a half
  const int warpgroup = hopper::Warpgroup();
  const int begin = warpgroup * S::kGroupRows;
  const int end = min(begin + S::kGroupRows, reading.num_tokens * reading.group);
  const int num_items = (CeilDiv(end, reading.group) - begin / reading.group) * kChunks;
  const bool clipped = far && reading.clip_distance != kRaw;
  hopper::MeetWarpgroup(1 + warpgroup);  // products with what is there are done
  for (int item = threadIdx.x % hopper::kWarpgroupThreads; item < num_items;
       item += hopper::kWarpgroupThreads) {
    const int token = begin / reading.group + item / kChunks;
    const int chunk = item % kChunks;
    const int distance =
        clipped ? reading.clip_distance : reading.position() + token + reading.shift;
    float4 turns[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (reading.rotate) turns[i] = TurnsOf(rope, S::kDim / 2, distance, chunk * 8 + 2 * i);
    }
    const auto* q = static_cast<const uint16_t*>(args.q) +
                    (reading.first_row + token) * args.q_stride +
                    int64_t{reading.first_head} * S::kDim + chunk * 8;
    for (int head = 0; head < reading.group; ++head) {
      const int row = token * reading.group + head;
      if (row < begin || row >= end) continue;
      const auto* from = reinterpret_cast<const std::byte*>(q + head * S::kDim);
      Words<4> low = LoadOnce<4>(from);
      Words<4> high = LoadOnce<4>(from + S::kDim);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (reading.rotate) Turn(low.w[i], high.w[i], turns[i]);
      }
      std::byte* matrix = queries + row / 64 * S::kMatrixBytes;
      const auto place = [&](int c) {
        return matrix + c / 8 * S::kPanelBytes + hopper::ChunkOffset(row % 64, c % 8);
      };
      *reinterpret_cast<Words<4>*>(place(chunk)) = low;
      *reinterpret_cast<Words<4>*>(place(chunk + kChunks)) = high;
    }
  }
  hopper::ShowToProducts();
  hopper::MeetWarpgroup(1 + warpgroup);
}

// 64 rows' scores of a tile's keys: elements 4 n to 4 n + 3 of lane 4 g + t are keys 8 n + 2 t and
// 8 n + 2 t + 1 for rows g (0, 1) and g + 8 (2, 3) of the warp's 16.
using Scores = float[32];
// Weights as first operands, by sixteen keys.
using Weights = uint32_t[4][4];

template <class S>
__device__ void Multiply(uint32_t queries, uint32_t keys, Scores& scores) {
#pragma unroll
  for (int step = 0; step < S::kDim / 16; ++step) {
    const int at = step / 4 * S::kPanelBytes + step % 4 * 32;
    const uint32_t a = hopper::Advance(queries, at);
    const uint32_t b = hopper::Advance(keys, at);
    if (step == 0) {
      hopper::Multiply<false>(scores, a, b);
    } else {
      hopper::Multiply<true>(scores, a, b);
    }
  }
}

// Of the scores of a tile, for the lane's rows, those of keys that a row does not see.
template <class S>
__device__ void Mask(const Shared<S>& shared, int32_t tile, int row, Scores& scores) {
  const Reading& reading = shared.reading;
  const bool far = tile < reading.far_tiles;
  const int end = (far ? reading.num_far * kBlockTokens : reading.first + 1) -
                  reading.FirstKey<S>(tile) - static_cast<int>(threadIdx.x) % 4 * 2;
  if (end >= S::kTileKeys) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row_end = end + (far ? 0 : shared.tokens[row + 8 * half]);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (8 * n + i >= row_end) scores[4 * n + 2 * half + i] = -INFINITY;
      }
    }
  }
}

// What 64 rows have folded. Elements 4 n to 4 n + 3 of lane 4 g + t are dimensions 8 n + 2 t and 8
// n + 2 t + 1 of rows g (0, 1) and g + 8 (2, 3) of the warp's 16.
template <class S>
struct RowTile {
  float out[S::kDim / 2] = {};
  float top[2] = {-INFINITY, -INFINITY};  // what weights are relative to, of base 2
  float sum[2] = {};                      // of the lane's own keys' weights

  // Turns scores into weights.
  __device__ void Weigh(Scores& scores, float factor) {
    float max[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < 32; ++i) max[i / 2 % 2] = fmaxf(max[i / 2 % 2], scores[i]);
    const bool rises = max[0] * factor > top[0] + kSlack || max[1] * factor > top[1] + kSlack;
    if (__any_sync(~0u, rises)) Raise(max, factor);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      scores[i] = Exp2(fmaf(scores[i], factor, -top[i / 2 % 2]));
      sum[i / 2 % 2] += scores[i];
    }
  }

  __device__ static void Pack(const Scores& scores, Weights& weights) {
#pragma unroll
    for (int i = 0; i < 16; ++i) weights[i / 4][i % 4] = PackBf16(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ void Add(const Weights& weights, uint32_t values) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      hopper::MultiplyRows(out, weights[step],
                           hopper::Advance(values, step * 16 * hopper::kPanelRowBytes));
    }
  }

  __device__ void Store(const AttentionArgs& args, const Reading& reading, int first_row) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = ReduceWarp<4>(sum[half], Sum());
      const int row = first_row + 8 * half;
      const int token = row / reading.group;
      if (token >= reading.num_tokens) continue;
      const int64_t result = int64_t{reading.first_row + token} * args.q_heads +
                             reading.first_head + row % reading.group;
      if (args.lse != nullptr && threadIdx.x % 4 == 0) {
        args.lse[result] = fmaf(top[half], kLn2, logf(total));
      }
      auto* to = static_cast<uint16_t*>(args.out) + result * S::kDim + threadIdx.x % 4 * 2;
      const float factor = 1.0f / total;
#pragma unroll
      for (int n = 0; n < S::kDim / 8; ++n) {
        const float* pair = &out[4 * n + 2 * half];
        *reinterpret_cast<uint32_t*>(to + 8 * n) = PackBf16(pair[0] * factor, pair[1] * factor);
      }
    }
  }

 private:
  // Of rows that need it, and no others: what it does to a row depends on that row only.
  __device__ void Raise(const float (&lane_max)[2], float factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float max = factor * ReduceWarp<4>(lane_max[half], Max());
      const bool rises = max > top[half] + kSlack;
      const float keep = rises ? Exp2(top[half] - max) : 1.0f;
      top[half] = rises ? max : top[half];
      sum[half] *= keep;
#pragma unroll
      for (int n = 0; n < S::kDim / 8; ++n) {
        out[4 * n + 2 * half] *= keep;
        out[4 * n + 2 * half + 1] *= keep;
      }
    }
  }
};

// Folds tiles into two times 64 rows of a warpgroup. While a row tile's scores become weights, the
// products of the other one with values are done.
template <class S>
struct Folding {
  Shared<S>& shared;
  uint32_t queries;  // operands: of the first 64 rows, and of the ring's first keys and values
  uint32_t keys;
  uint32_t values;
  float factor;  // turns scores to base 2
  RowTile<S> rows[2];

  __device__ uint32_t Keys(int32_t tile) const {
    return hopper::Advance(keys, Stage<S>(tile) * S::kStageBytes);
  }
  __device__ uint32_t Values(int32_t tile) const {
    return hopper::Advance(values, Stage<S>(tile) * S::kStageBytes);
  }

  // Tiles [begin, end).
  __device__ void Fold(int32_t begin, int32_t end) {
    Scores scores;
    Weights weights;
    shared.ring.AwaitFull(begin);
    BeginProducts(scores);
    Multiply<S>(queries, Keys(begin), scores);
    EndProducts();
    AwaitProducts<0>(scores);
    Weigh<0>(begin, scores);
    RowTile<S>::Pack(scores, weights);
    for (int32_t tile = begin; tile + 1 < end; ++tile) {
      FoldOne<0>(tile, tile, scores, weights);
      shared.ring.AwaitFull(tile + 1);
      FoldOne<1>(tile, tile + 1, scores, weights);
      shared.ring.Release(tile);
    }
    FoldOne<0>(end - 1, end - 1, scores, weights);
    BeginProducts(weights, rows[1].out);
    rows[1].Add(weights, Values(end - 1));
    EndProducts();
    AwaitProducts<0>(weights, rows[1].out);
    shared.ring.Release(end - 1);
  }

  template <int kRowTile>
  __device__ void Weigh(int32_t tile, Scores& scores) {
    Mask<S>(shared, tile, Row<S>(kRowTile), scores);
    rows[kRowTile].Weigh(scores, factor);
    hopper::ComputeNow(rows[kRowTile].sum[0] + rows[kRowTile].sum[1], shared.tokens);
    hopper::Pin(scores);
  }

  // Adds a row tile's weighted values of a tile while the other one's weights in tile `next` are
  // computed.
  template <int kRowTile>
  __device__ void FoldOne(int32_t tile, int32_t next, Scores& scores, Weights& weights) {
    RowTile<S>& own = rows[kRowTile];
    asm volatile("" : "+r"(queries));  // descriptors are made anew rather than kept in registers
    BeginProducts(scores, weights, own.out);
    Multiply<S>(hopper::Advance(queries, (1 - kRowTile) * S::kMatrixBytes), Keys(next), scores);
    EndProducts();
    own.Add(weights, Values(tile));
    EndProducts();
    AwaitProducts<1>(scores);
    Weigh<1 - kRowTile>(next, scores);
    AwaitProducts<0>(weights, own.out);
    RowTile<S>::Pack(scores, weights);
  }
};

template <class S>
__device__ void FoldAll(const AttentionArgs& args, Shared<S>& shared, std::byte* memory,
                        const RopeTable& rope) {
  const Reading& reading = shared.reading;
  const uint32_t address = SharedAddress(memory);
  const uint32_t ring = address + S::kQueryBytes;
  Folding<S> folding = {
      shared, hopper::Operand(address + hopper::Warpgroup() * 2 * S::kMatrixBytes, 0),
      hopper::Operand(ring, 0), hopper::Operand(ring + S::kMatrixBytes, S::kPanelBytes),
      args.scale * kLog2e * (reading.rotate ? rope.scale * rope.scale : 1.0f)};
  const int32_t num_tiles = reading.num_tiles;
  for (int32_t begin = 0; begin < num_tiles;) {
    const bool far = begin < reading.far_tiles;
    const int32_t end = far && reading.clip_distance != kRaw ? reading.far_tiles : num_tiles;
    LoadQueries<S>(args, reading, rope, far, memory);
    folding.Fold(begin, end);
    begin = end;
  }
  folding.rows[0].Store(args, reading, Row<S>(0));
  folding.rows[1].Store(args, reading, Row<S>(1));
}

// CTA (KV head, tokens of the block, block). The latest tokens, which may see most, begin first.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttendHopper(AttentionArgs args, Step step, RopeTable rope, const QueryBlock* blocks) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>(memory + S::kSharedBytes);
  const QueryBlock& block = blocks[blockIdx.z];
  const int group = args.q_heads / args.cache.kv_heads;
  const int tokens = S::kRows / group;
  const int first = (CeilDiv(block.num_rows, tokens) - 1 - static_cast<int>(blockIdx.y)) * tokens;
  if (first < 0) return;
  const int num_tokens = min(tokens, block.num_rows - first);
  const int folding = CeilDiv(num_tokens * group, S::kGroupRows);
  if (threadIdx.x == 0) {
    shared.reading = ReadingOf<S>(args, step, block, blockIdx.x, first, num_tokens);
    shared.ring.Init(folding);
  }
  if (threadIdx.x < S::kRows) shared.tokens[threadIdx.x] = threadIdx.x / group;
  __syncthreads();
  const int warpgroup = hopper::Warpgroup();
  if (warpgroup == S::kFolding) {
    hopper::GiveRegisters<S::kLoadingRegisters>();
    Loader<S>(shared, memory + S::kQueryBytes, rope).Run();
  } else {
    hopper::TakeRegisters<S::kFoldingRegisters>();
    if (warpgroup < folding) FoldAll<S>(args, shared, memory, rope);
  }
#endif
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, const RopeTable& rope, Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const dim3 grid = GridOf(args, plan, S::kRows);
  constexpr int kBytes = S::kSharedBytes + sizeof(Shared<S>);
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(AttendHopper<S>, kBytes);
  AttendHopper<S><<<grid, S::kThreads, kBytes, context.stream>>>(
      args, step, rope, plan.blocks + plan.num_decode_blocks);
  EVERLONG_CUDA_LAUNCHED("prompt::AttendHopper");
}

template <class Kv>
void LaunchFor(const AttentionArgs& args, const Step& step, const RopeTable& rope,
               Context& context) {
  if (args.cache.head_dim == 64) return Launch<HopperShape<Kv, 64>>(args, step, rope, context);
  return Launch<HopperShape<Kv, 128>>(args, step, rope, context);
}

}  // namespace
}  // namespace prompt

bool HasHopperPromptAttention(const AttentionArgs& args, const Context& context) {
#ifdef EVERLONG_SM90A
  constexpr bool kBuilt = true;
#else
  constexpr bool kBuilt = false;
#endif
  const int head_dim = args.cache.head_dim;
  return kBuilt && context.architecture == 90 && (head_dim == 64 || head_dim == 128) &&
         args.q_heads / args.cache.kv_heads > 2 && args.q_stride % 8 == 0;
}

void HopperPromptAttention(const AttentionArgs& args, const Step& step, const RopeTable& rope,
                           Context& context) {
  if (args.cache.type == DType::kF8) return prompt::LaunchFor<F8Kv>(args, step, rope, context);
  prompt::LaunchFor<Bf16Kv>(args, step, rope, context);
}

}  // namespace everlong::cuda
