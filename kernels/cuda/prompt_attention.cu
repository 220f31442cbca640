// Attention of the query blocks of prompts: many queries for the same keys, so that the time goes
// to matrix products. A CTA takes the query heads of a KV head's group for some tokens of a block;
// its warps keep their rows' queries and results in registers while tiles of keys and values come
// by in shared memory (Dao: FlashAttention-2, 2023). Tiles begin at the start of what a block
// reads, and in the window at its start, wherever the rows are, so that a row folds the same keys
// together whatever rows are there beside it.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/prompt_tiles.cuh"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda {
namespace prompt {
namespace {

constexpr float kLog2e = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
// Weights are relative to a score that the largest one passes by so much at most: they may be
// 2^kSlack.
constexpr float kSlack = 8.0f;

__device__ inline float Exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Lane 4 g + t of a warp has rows Row(tile, half) = 16 tile + 8 half + g of its part of the CTA's.
template <class S>
__device__ int Row(int tile, int half) {
  return threadIdx.x / 32 * S::kWarpRows + 16 * tile + 8 * half + threadIdx.x % 32 / 4;
}

// The warp's query rows as first operands, for keys of the window or, `far`, for others.
template <class S>
struct Query {
  uint32_t a[S::kRowTiles][S::kDim / 16][4];

  __device__ void Load(const AttentionArgs& args, const Reading& reading, const RopeTable& rope,
                       int group, int kv_head, bool far) {
    const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Rows past the last are the last token's, so that all are finite where that one is.
        const int row = Row<S>(tile, half);
        const int token = min(row / group, reading.num_rows - 1);
        const int64_t head = kv_head * group + row % group;
        LoadRow(static_cast<const uint16_t*>(args.q) + (reading.first_row + token) * args.q_stride +
                    head * head_dim,
                head_dim, tile, half);
        if (!reading.rotate) continue;
        const bool clipped = far && reading.clip_distance != kRaw;
        const int distance =
            clipped ? reading.clip_distance : reading.position() + token + reading.shift;
        TurnRow(rope, distance, head_dim / 2, tile, half);
      }
    }
  }

 private:
  // Of a step's first or second eight dimensions.
  __device__ static int Dim(int step, int part) {
    return 16 * step + 8 * part + threadIdx.x % 4 * 2;
  }

  __device__ void LoadRow(const uint16_t* q, int head_dim, int tile, int half) {
#pragma unroll
    for (int step = 0; step < S::kDim / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint32_t& word = a[tile][step][half + 2 * part];
        int dim = Dim(step, part);
        if constexpr (S::kPadded) {
          const PaddedDim<S::kDim> padded(dim, head_dim);
          word = 0;
          if (!padded.exists) continue;
          dim = padded.stored;
        }
        word = *reinterpret_cast<const uint32_t*>(q + dim);
      }
    }
  }

  __device__ void TurnRow(const RopeTable& rope, int distance, int half_dim, int tile, int half) {
#pragma unroll
    for (int step = 0; step < S::kDim / 32; ++step) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int pair = Dim(step, part);
        if (S::kPadded && pair >= half_dim) continue;
        const int i = half + 2 * part;
        Turn(a[tile][step][i], a[tile][step + S::kDim / 32][i],
             TurnsOf(rope, half_dim, distance, pair));
      }
    }
  }
};

// Scores or weights of a step's keys: lane 4 g + t holds keys 8 n + 2 t and 8 n + 2 t + 1 for rows
// g (0, 1) and g + 8 (2, 3) of a tile.
template <class S>
using Scores = float[S::kRowTiles][S::kStepKeys / 8][4];

// `keys`: the address of the first.
template <class S>
__device__ void Multiply(const Query<S>& query, uint32_t keys, Scores<S>& scores) {
  const int lane = threadIdx.x % 32;
  const uint32_t own = keys + Tiles<S>::ChunkOffset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < S::kDim / 16; ++step) {
#pragma unroll
    for (int n = 0; n < S::kStepKeys / 8; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, (own ^ (step << 5)) + n * 8 * S::kVectorBytes);
#pragma unroll
      for (int tile = 0; tile < S::kRowTiles; ++tile) {
        MultiplyAdd(scores[tile][n], query.a[tile][step], b[0], b[1]);
        MultiplyAdd(scores[tile][n + 1], query.a[tile][step], b[2], b[3]);
      }
    }
  }
}

// A lane's rows see the keys up to `last` of row 0 and, where those are of the window, one more for
// every token; the scores' first key is `first`.
template <class S>
__device__ void Mask(const Reading& reading, bool far, int first, int group, Scores<S>& scores) {
#pragma unroll
  for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last =
          far ? reading.num_far * kBlockTokens - 1 : reading.first + Row<S>(tile, half) / group;
#pragma unroll
      for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = first + 8 * n + static_cast<int>(threadIdx.x) % 4 * 2 + i;
          if (key > last) scores[tile][n][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

// What the warp's rows have folded. Lane 4 g + t holds dimensions 8 n + 2 t and 8 n + 2 t + 1 of
// rows g (0, 1) and g + 8 (2, 3) of a tile.
template <class S>
struct Folded {
  float out[S::kRowTiles][S::kDim / 8][4] = {};
  float top[S::kRowTiles][2];       // what weights are relative to, of base 2
  float sum[S::kRowTiles][2] = {};  // of the lane's own keys' weights

  __device__ Folded() {
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) top[tile][0] = top[tile][1] = -INFINITY;
  }

  // Turns scores into weights.
  __device__ void Weigh(Scores<S>& scores, float factor) {
    float max[S::kRowTiles][2];
    bool rises = false;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[tile][half] = scores[tile][0][2 * half];
#pragma unroll
        for (int n = 0; n < S::kStepKeys / 8; ++n) {
          max[tile][half] = fmaxf(max[tile][half],
                                  fmaxf(scores[tile][n][2 * half], scores[tile][n][2 * half + 1]));
        }
        rises |= max[tile][half] * factor > top[tile][half] + kSlack;
      }
    }
    if (__any_sync(~0u, rises)) Raise(max, factor);
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int n = 0; n < S::kStepKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores[tile][n][i];
          score = Exp2(fmaf(score, factor, -top[tile][i / 2]));
          sum[tile][i / 2] += score;
        }
      }
    }
  }

  // `values`: the address of the first.
  __device__ void Add(const Scores<S>& weights, uint32_t values) {
    const int lane = threadIdx.x % 32;
    const uint32_t own = values + Tiles<S>::ChunkOffset(lane % 16, lane / 16);
#pragma unroll
    for (int step = 0; step < S::kStepKeys / 16; ++step) {
      uint32_t a[S::kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &weights[tile][2 * step + i / 2][i % 2 * 2];
          a[tile][i] = PackBf16(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < S::kDim / 8; n += 2) {
        uint32_t b[4];
        LoadTransposed(b, (own ^ (n << 4)) + step * 16 * S::kVectorBytes);
#pragma unroll
        for (int tile = 0; tile < S::kRowTiles; ++tile) {
          MultiplyAdd(out[tile][n], a[tile], b[0], b[1]);
          MultiplyAdd(out[tile][n + 1], a[tile], b[2], b[3]);
        }
      }
    }
  }

  __device__ void Store(const AttentionArgs& args, const Reading& reading, int group,
                        int kv_head) const {
    const int head_dim = S::kPadded ? args.cache.head_dim : S::kDim;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = OverQuad(sum[tile][half], [](float a, float b) { return a + b; });
        const int row = Row<S>(tile, half);
        if (row >= reading.num_rows * group) continue;
        const int64_t result =
            int64_t{reading.first_row + row / group} * args.q_heads + kv_head * group + row % group;
        if (args.lse != nullptr && threadIdx.x % 4 == 0) {
          args.lse[result] = fmaf(top[tile][half], kLn2, logf(total));
        }
        StoreRow(static_cast<uint16_t*>(args.out) + result * head_dim, head_dim, 1.0f / total, tile,
                 half);
      }
    }
  }

 private:
  // Over the lanes that have keys of the same row.
  template <class Combine>
  __device__ static float OverQuad(float x, const Combine& combine) {
    x = combine(x, __shfl_xor_sync(~0u, x, 1));
    return combine(x, __shfl_xor_sync(~0u, x, 2));
  }

  // Of rows that need it, and no others: what it does to a row depends on that row only.
  __device__ void Raise(const float (&lane_max)[S::kRowTiles][2], float factor) {
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float max =
            factor * OverQuad(lane_max[tile][half], [](float a, float b) { return fmaxf(a, b); });
        if (!(max > top[tile][half] + kSlack)) continue;
        const float keep = Exp2(top[tile][half] - max);
        top[tile][half] = max;
        sum[tile][half] *= keep;
#pragma unroll
        for (int n = 0; n < S::kDim / 8; ++n) {
          out[tile][n][2 * half] *= keep;
          out[tile][n][2 * half + 1] *= keep;
        }
      }
    }
  }

  __device__ void StoreRow(uint16_t* to, int head_dim, float factor, int tile, int half) const {
#pragma unroll
    for (int n = 0; n < S::kDim / 8; ++n) {
      int dim = 8 * n + threadIdx.x % 4 * 2;
      if constexpr (S::kPadded) {
        const PaddedDim<S::kDim> padded(dim, head_dim);
        if (!padded.exists) continue;
        dim = padded.stored;
      }
      *reinterpret_cast<uint32_t*>(to + dim) =
          PackBf16(out[tile][n][2 * half] * factor, out[tile][n][2 * half + 1] * factor);
    }
  }
};

// Folds what the warp's rows see of a tile, `factor` being what turns scores to base 2.
template <class S>
__device__ void Fold(const Reading& reading, const Tiles<S>& tiles, const Query<S>& query,
                     int32_t tile, int group, float factor, Folded<S>& folded) {
  const bool far = tile < reading.far_tiles;
  const int row = threadIdx.x / 32 * S::kWarpRows;
  if (row >= reading.num_rows * group) return;
  const int far_last = reading.num_far * kBlockTokens - 1;
  const int first_row_last = far ? far_last : reading.first + row / group;
  const int last_row_last = far ? far_last : reading.first + (row + S::kWarpRows - 1) / group;
  const int first = reading.FirstKey<S>(tile);
#pragma unroll 1
  for (int i = 0; i < S::kTileKeys; i += S::kStepKeys) {
    if (first + i > last_row_last) return;
    Scores<S> scores;
    Multiply<S>(query, tiles.Keys(tile) + i * S::kVectorBytes, scores);
    if (first + i + S::kStepKeys - 1 > first_row_last) {
      Mask<S>(reading, far, first + i, group, scores);
    }
    folded.Weigh(scores, factor);
    folded.Add(scores, tiles.Values(tile) + i * S::kVectorBytes);
  }
}

// CTA (KV head, tokens of the block, block). The latest tokens, which may see most, begin first.
// Of the two warps that share a scheduler, one prepares the next tile before it folds this one and
// the other one after it, so that one of them keeps the tensor cores busy.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kCtas)
    Attend(AttentionArgs args, Step step, RopeTable rope, const QueryBlock* blocks) {
  extern __shared__ __align__(1024) std::byte shared[];
  Reading& reading = *reinterpret_cast<Reading*>(shared + S::kSharedBytes);
  const int group = args.q_heads / args.cache.kv_heads;
  const int kv_head = blockIdx.x;
  {
    const QueryBlock& block = blocks[blockIdx.z];
    const int tokens = S::kRows / group;
    const int parts = (block.num_rows + tokens - 1) / tokens;
    const int first = (parts - 1 - static_cast<int>(blockIdx.y)) * tokens;
    if (first < 0) return;
    if (threadIdx.x == 0) {
      reading =
          ReadingOf<S>(args, step, block, kv_head, first, min(tokens, block.num_rows - first));
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
  Query<S> query;
  Folded<S> folded;
  const int num_tiles = reading.num_tiles;
  for (int tile = 0; tile < num_tiles; ++tile) {
    __syncthreads();
    tiles.Request(tile + S::kStages - 1);
    if (prepares_first) tiles.Prepare(tile + 1);
    const bool far = tile < reading.far_tiles;
    if (tile == 0 || (tile == reading.far_tiles && reading.clip_distance != kRaw)) {
      query.Load(args, reading, rope, group, kv_head, far);
    }
    Fold(reading, tiles, query, tile, group, factor, folded);
    if (!prepares_first) tiles.Prepare(tile + 1);
  }
  folded.Store(args, reading, group, kv_head);
}

template <class S>
void Launch(const AttentionArgs& args, const Step& step, const RopeTable& rope, Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const int tokens = S::kRows / (args.q_heads / args.cache.kv_heads);
  int parts = 0;
  for (const QueryBlock& block : plan.host_blocks.subspan(plan.num_decode_blocks)) {
    parts = std::max(parts, (block.num_rows + tokens - 1) / tokens);
  }
  const dim3 grid(args.cache.kv_heads, parts, plan.num_blocks - plan.num_decode_blocks);
  constexpr int kBytes = S::kSharedBytes + sizeof(Reading);
  EVERLONG_CUDA(
      cudaFuncSetAttribute(Attend<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  Attend<S><<<grid, S::kThreads, kBytes, context.stream>>>(args, step, rope,
                                                           plan.blocks + plan.num_decode_blocks);
  EVERLONG_CUDA_LAUNCHED("prompt::Attend");
}

// Small groups do not fill the rows of eight warps, and before Hopper shared memory does not hold
// three tiles.
template <class Kv>
void LaunchFor(const AttentionArgs& args, const Step& step, const RopeTable& rope,
               Context& context) {
  const bool large = context.architecture >= 90 && args.q_heads / args.cache.kv_heads > 2;
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
  if (cache.type == DType::kF8) {
    prompt::LaunchFor<F8Kv>(args, step, rope, context);
  } else {
    EVERLONG_CHECK(cache.type == DType::kBF16);
    prompt::LaunchFor<Bf16Kv>(args, step, rope, context);
  }
}

}  // namespace everlong::cuda
