// Probing for blocks of prompts, whose many rows make products the most of the work. A list of
// chunks has a team of two warps, or several teams where its rows are many: of a team, one warp
// holds some rows as left probes see them, the other one as right probes do. They go down some of
// the list's chunks level by level, and a level in steps: each warp copies keys of its side to
// shared memory, one for every chunk that it looks after, and multiplies those that all warps of
// its side have copied. A step's keys arrive while those of the step before are multiplied. That
// can be, for a chunk's next probes are a whole level's steps after the last ones. The lists of a
// CTA are query blocks that follow each other and do not wait for one another.
#include <algorithm>

#include "kernels/cuda/error.h"
#include "kernels/cuda/hip_chunks.cuh"
#include "kernels/cuda/hip_keys.cuh"
#include "kernels/cuda/hip_probing.h"
#include "kernels/cuda/hip_tile.cuh"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::hip {
namespace {

// Of a level: a step aims two steps ahead, by what is known of the steps before it.
constexpr int kMinSteps = 3;
constexpr int kMaxSteps = 4;
constexpr int64_t kCtasPerSm = 4;  // so many that lists of unequal lengths still fill the device

__host__ __device__ constexpr int NumTeams(int dim) {
  return dim > 128 ? 2 : 4;
}

// How many teams share the rows of a query block in a stage, at best one pass each. Only speed
// depends on it.
__host__ __device__ int TeamsFor(const Probing& p, const QueryBlock& block,
                                 const SelectParams& params, int stage) {
  const bool pool = params.stages[stage].pool_rows;
  const int per_head = pool ? CeilDiv(block.num_rows, kPooledRows) : block.num_rows;
  const int passes = CeilDiv(p.group * per_head, p.pass_rows());
  return passes > 2 ? NumTeams(p.dim) : passes;
}

// How many keys the warps of a CTA copy, and what room that takes.
template <class ShapeType, int kTileCount>
struct Cta {
  using S = ShapeType;
  static constexpr int kTiles = kTileCount;  // that a warp copies in a step
  static constexpr int kTeams = NumTeams(S::kDim);
  static constexpr int kWarps = 2 * kTeams;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpChunks = kTileKeys * kTiles;
  static constexpr int kSlots = kTeams * kMaxSteps * kWarpChunks;  // for chunks of all lists
  static_assert(kWarpChunks <= 32);
};

// What the warps of a list do: all levels of some chunks, then of as many that follow.
struct Work {
  List list;
  int first;  // of the list's chunks, those of this CTA
  int end;
  int level_steps;
  int range_chunks;     // at a time
  int rounds_per_head;  // in which all teams together take a pass each
  int rounds;
  int steps;  // 0: there is nothing to do
};

template <class C>
__device__ Work WorkOf(const Probing& p, int stage, int block, int end_block, int teams) {
  Work work = {};
  const int number = block * p.cache.kv_heads + static_cast<int>(blockIdx.y);
  const int count = block < end_block ? p.counts[number] : 0;
  if (count == 0 || TeamsFor(p, p.blocks[block], p.selects[p.blocks[block].select], stage) != teams)
    return work;
  const int share = CeilDiv(CeilDiv(count, static_cast<int>(gridDim.z)), kTileKeys) * kTileKeys;
  work.first = static_cast<int>(blockIdx.z) * share;
  work.end = min(work.first + share, count);
  const int chunks = work.end - work.first;
  if (chunks <= 0) return work;
  work.list = ListOf(p, stage, number);
  const int step_chunks = C::kWarpChunks * teams;
  const int ranges = CeilDiv(chunks, step_chunks * kMaxSteps);
  work.level_steps = max(CeilDiv(chunks, ranges * step_chunks), kMinSteps);
  work.range_chunks = work.level_steps * step_chunks;
  work.rounds_per_head = CeilDiv(work.list.num_passes, teams);
  work.rounds = work.rounds_per_head * work.list.num_heads;
  work.steps = ranges * work.list.levels * work.rounds * work.level_steps;
  return work;
}

// Of the steps, in their order.
struct Cursor {
  int of_level = 0;
  int round = 0;
  int level = 0;
  int range = 0;

  __device__ void Next(const Work& work) {
    if (++of_level < work.level_steps) return;
    of_level = 0;
    if (++round < work.rounds) return;
    round = 0;
    if (++level < work.list.levels) return;
    level = 0;
    ++range;
  }
};

struct Slot {
  int32_t start;  // of the chunk, in KV blocks
  Path path;
};

template <class C>
struct Shared {
  using Tile = KeyTile<typename C::S>;
  alignas(128) std::byte keys[2][C::kWarps][C::kTiles][Tile::kBytes];
  const std::byte* addresses[C::kWarps][C::kWarpChunks];
  Slot slots[2][C::kSlots];            // by side, which both follow all paths
  float scores[C::kWarps][C::kSlots];  // by chunk of the warp's list
  KeyTurns<typename C::S> turns;
  Work works[C::kTeams];
};

// kTurned: as the list's rotates_keys.
template <class C, bool kTurned>
class Prober {
 public:
  using S = typename C::S;
  using Kv = typename S::Kv;
  using Tile = KeyTile<S>;

  // `index`: of the list among the CTA's.
  __device__ Prober(const Probing& p, Shared<C>& shared, int index, int teams)
      : p_(p),
        shared_(shared),
        work_(shared.works[index]),
        index_(index),
        teams_(teams),
        first_warp_(index * 2 * teams) {}

  // Keys are requested a step before they are multiplied, and aimed at another step before.
  __device__ void Run() {
    Aim();
    Request(0);
    Aim();
    LoadRows(0);
    for (int i = 0; i < work_.steps; ++i) {
      AwaitCopies<0>();
      Meet();
      Request((i + 1) % 2);
      Aim();
      Multiply(i % 2);
    }
    Meet();
    for (int i = 2; i < work_.level_steps; ++i) Aim();
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int side() { return warp() % 2; }
  __device__ int team() const { return warp() / 2 % teams_; }

  // The list's warps.
  __device__ void Meet() const {
    asm volatile("bar.sync %0, %1;" ::"r"(index_ + 1), "r"(64 * teams_) : "memory");
  }

  // Finds where the warp's chunks of the next step are probed, after their last probes' scores, a
  // level's steps before, have brought them on.
  __device__ void Aim() {
    const List& list = work_.list;
    const int in_range =
        (aimed_.of_level * teams_ + team()) * C::kWarpChunks + lane() % C::kWarpChunks;
    const int number = work_.first + aimed_.range * work_.range_chunks + in_range;
    Slot& slot = shared_.slots[side()][kMaxSteps * C::kWarpChunks * teams_ * index_ + in_range];
    Slot now = slot;
    if (aimed_.round == 0) {
      if (aimed_.level > 0) {
        Descend(now, in_range, aimed_.level - 1);
      } else {
        if (aimed_.range > 0) {
          Descend(now, in_range, list.levels - 1);
          Finish(now, number - work_.range_chunks);
        }
        now = {list.chunks.Start(min(number, work_.end - 1)), {0, -INFINITY}};
      }
      __syncwarp();
      if (lane() < C::kWarpChunks) slot = now;
    }
    const Level level = list.LevelAt(aimed_.level);
    const int64_t probe =
        int64_t{now.start} * kBlockTokens + now.path.low + (side() == 0 ? level.left : level.right);
    const int64_t position = min(probe, list.end - 1);
    page_ = list.pages[position / kPageTokens];
    token_ = static_cast<int>(position % kPageTokens);
    head_ = list.head + (list.num_heads > 1 ? aimed_.round / work_.rounds_per_head : 0);
    exists_ = number - lane() % C::kWarpChunks < work_.end;
    aimed_.Next(work_);
  }

  __device__ void Descend(Slot& slot, int in_range, int level_number) const {
    const List& list = work_.list;
    const Level level = list.LevelAt(level_number);
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
    for (int team = 0; team < teams_; ++team) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        best[i] = fmaxf(best[i], shared_.scores[first_warp_ + 2 * team + i][in_range]);
      }
    }
    const int64_t low = int64_t{slot.start} * kBlockTokens + slot.path.low;
    slot.path.Descend(list, level, low + level.left < list.end ? best[0] : -INFINITY,
                      low + level.right < list.end ? best[1] : -INFINITY);
  }

  __device__ void Finish(const Slot& slot, int number) const {
    if (side() == 0 && lane() < C::kWarpChunks && number < work_.end) {
      p_.scores[work_.list.first * p_.score_stride + number] = slot.path.best;
    }
  }

  // Begins to copy the keys aimed at.
  __device__ void Request(int stage) {
    if (exists_) {
      const int head_dim = S::kPadded ? p_.cache.head_dim : S::kDim;
      std::byte* tiles = shared_.keys[stage][warp()][0];
      const std::byte** addresses = shared_.addresses[warp()];
      if (lane() < C::kWarpChunks) {
        // As KvCache::PageBytes and BlockBytes have it, but known when compiled.
        const int block_bytes = 2 * kBlockTokens * (head_dim * Kv::kBytes + (Kv::kScaled ? 4 : 0));
        const int64_t block = int64_t{page_} * p_.cache.kv_heads * kPageBlocks +
                              head_ * kPageBlocks + token_ / kBlockTokens;
        const KeyAddress<Kv> key(static_cast<const std::byte*>(p_.cache.base) + block * block_bytes,
                                 token_ % kBlockTokens, head_dim);
        addresses[lane()] = key.elements;
        Tile::RequestScale(tiles + lane() / kTileKeys * Tile::kBytes, lane() % kTileKeys,
                           key.scale);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < C::kTiles; ++i) {
        Tile::Request(tiles + i * Tile::kBytes, addresses + i * kTileKeys, head_dim);
      }
    }
    EndCopies();
  }

  __device__ void LoadRows(int round) {
    const int pass = round % work_.rounds_per_head * teams_ + team();
    has_rows_ = pass < work_.list.num_passes;
    if (!has_rows_) return;
    const int64_t list = work_.list.first + round / work_.rounds_per_head;
    rows_.Load(p_.queries + list * p_.query_stride +
               (pass * 2 + side()) * (S::kRowTiles * S::kSteps * kRowsWords));
  }

  __device__ void Multiply(int stage) {
    if (multiplied_.of_level == 0 && work_.rounds > 1) LoadRows(multiplied_.round);
    const int first = multiplied_.of_level * teams_ * C::kWarpChunks;
    const int number = work_.first + multiplied_.range * work_.range_chunks + first;
    const int there = max(CeilDiv(work_.end - number, kTileKeys), 0);
    const int tiles = has_rows_ ? min(there, teams_ * C::kTiles) : 0;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const int warp = first_warp_ + i / C::kTiles * 2 + side();
      MultiplyTile(shared_.keys[stage][warp][i % C::kTiles], first + i * kTileKeys,
                   number + i * kTileKeys);
    }
    multiplied_.Next(work_);
  }

  __device__ void MultiplyTile(const std::byte* tile, int in_range, int number) {
    const int half_dim = (S::kPadded ? p_.cache.head_dim : S::kDim) / 2;
    const float best = rows_.template Best<kTurned>(tile, p_.rope, shared_.turns, half_dim, number);
    if (lane() < kTileKeys) {
      float& score = shared_.scores[warp()][in_range + QueryRows<S>::OwnKey()];
      score = multiplied_.round > 0 ? fmaxf(score, best) : best;
    }
  }

  const Probing& p_;
  Shared<C>& shared_;
  const Work& work_;
  int index_;
  int teams_;
  int first_warp_;
  Cursor aimed_;
  Cursor multiplied_;
  // The key of lane's chunk that was aimed at.
  int page_;
  int token_;
  int head_;
  bool exists_;  // the warp has chunks there
  bool has_rows_;
  QueryRows<S> rows_;
};

// Of query blocks [first_block, end_block), those that so many teams share.
template <class C>
__global__ void __launch_bounds__(C::kThreads, C::S::kPadded ? 2 : 1)
    PromptProbesKernel(const Probing p, int stage, int first_block, int end_block, int teams) {
  extern __shared__ __align__(128) std::byte bytes[];
  Shared<C>& shared = *reinterpret_cast<Shared<C>*>(bytes);
  const auto thread = static_cast<int>(threadIdx.x);
  const int num_lists = C::kTeams / teams;
  if (thread < num_lists) {
    const int block = first_block + static_cast<int>(blockIdx.x) * num_lists + thread;
    shared.works[thread] = WorkOf<C>(p, stage, block, end_block, teams);
  }
  if (p.rotate) shared.turns.Fill(p.rope, p.cache.head_dim / 2);
  // Warps without rows leave their scores as they are.
  for (int i = thread; i < C::kWarps * C::kSlots; i += C::kThreads) {
    shared.scores[i / C::kSlots][i % C::kSlots] = -INFINITY;
  }
  __syncthreads();
  const int index = thread / 64 / teams;
  if (shared.works[index].steps == 0) return;
  if (shared.works[index].list.rotates_keys) {
    Prober<C, true>(p, shared, index, teams).Run();
  } else {
    Prober<C, false>(p, shared, index, teams).Run();
  }
}

struct LaunchRange {
  int first_block;
  int end_block;
  int teams;
  int splits;
};

template <class C>
void Launch(const Probing& p, int stage, const LaunchRange& range, cudaStream_t stream) {
  [[maybe_unused]] static const bool allowed =
      AllowSharedMemory(PromptProbesKernel<C>, sizeof(Shared<C>));
  const int blocks = range.end_block - range.first_block;
  const dim3 grid(static_cast<unsigned>(CeilDiv(blocks, C::kTeams / range.teams)),
                  static_cast<unsigned>(p.cache.kv_heads), static_cast<unsigned>(range.splits));
  PromptProbesKernel<C><<<grid, C::kThreads, sizeof(Shared<C>), stream>>>(
      p, stage, range.first_block, range.end_block, range.teams);
  EVERLONG_CUDA_LAUNCHED("hip::PromptProbesKernel");
}

// Only data centres' GPUs from Hopper on have the shared memory for two tiles a warp.
template <class Kv>
void LaunchFor(const Probing& p, int stage, const LaunchRange& range, const Context& context) {
  const bool roomy = context.architecture >= 90 && context.architecture < 120;
  const auto launch = [&](auto shape) {
    using S = decltype(shape);
    if constexpr (!S::kPadded) {
      if (roomy) {
        return Launch<Cta<S, 2>>(p, stage, range, context.stream);
      }
    }
    Launch<Cta<S, 1>>(p, stage, range, context.stream);
  };
  if (p.dim == 64) return launch(Shape<Kv, 64, false>());
  if (p.dim == 128) return launch(Shape<Kv, 128, false>());
  launch(Shape<Kv, 256, true>());
}

}  // namespace

void ProbeForPrompts(const Probing& p, int stage, int64_t max_chunks, const QueryBlock* blocks,
                     const SelectParams* selects, const Context& context) {
  for (int teams = 1; teams <= NumTeams(p.dim); teams *= 2) {
    int first = p.num_blocks;
    int end = 0;
    for (int i = 0; i < p.num_blocks; ++i) {
      if (!Probes(blocks[i], selects)) continue;
      const SelectParams& params = selects[blocks[i].select];
      if (!Runs(blocks[i], params, stage) || TeamsFor(p, blocks[i], params, stage) != teams) {
        continue;
      }
      first = std::min(first, i);
      end = i + 1;
    }
    if (first >= end) continue;
    const int64_t ctas = CeilDiv(end - first, NumTeams(p.dim) / teams) * int64_t{p.cache.kv_heads};
    const int splits =
        std::min(CeilDiv(kCtasPerSm * context.num_sms, ctas), CeilDiv(max_chunks, 128));
    const LaunchRange range = {first, end, teams, splits};
    if (p.cache.type == DType::kF8) {
      LaunchFor<F8Kv>(p, stage, range, context);
    } else {
      LaunchFor<Bf16Kv>(p, stage, range, context);
    }
  }
}

}  // namespace everlong::cuda::hip
