// Probing for blocks of prompts, whose many rows make products the most of the work. A CTA goes
// down some chunks level by level: warps hold 64 rows each as left operands, as left or as right
// probes see them, and take keys of the level from all chunks, eight at a time, while they wait for
// the next eight. Query blocks that follow each other probe much the same keys, so a CTA has the
// same chunks of several, where they have few rows, and finds most keys in its first cache.
#include <algorithm>

#include "kernels/cuda/error.h"
#include "kernels/cuda/hip_chunks.cuh"
#include "kernels/cuda/hip_keys.cuh"
#include "kernels/cuda/hip_probing.h"

namespace everlong::cuda::hip {
namespace {

constexpr int kThreads = 256;
constexpr int kTeams = 4;          // of two warps, for left and for right probes
constexpr int kChunks = kThreads;  // of a list in a CTA; each thread looks after one

// How many teams share the rows of a query block in a stage, at best one pass each. Only speed
// depends on it.
__host__ __device__ int TeamsFor(const Probing& p, const QueryBlock& block,
                                 const SelectParams& params, int stage) {
  const bool pool = params.stages[stage].pool_rows;
  const int per_head = pool ? CeilDiv(block.num_rows, kPooledRows) : block.num_rows;
  const int passes = CeilDiv(p.group * per_head, p.pass_rows());
  const int all_passes = passes * (params.all_heads ? p.cache.kv_heads : 1);
  return all_passes > 2 ? kTeams : all_passes;
}

struct Shared {
  List lists[kTeams];
  int32_t counts[kTeams];  // of the list's chunks in this CTA
  Path paths[kTeams][kChunks];
  int64_t places[kTeams][2][kChunks];  // of a level's keys, by list and side
  float scores[kTeams][2][kChunks];    // of a level's keys, by team and side
};

// A warp of a team: kRowTiles tiles of rows as one side sees them.
template <class S>
class Scorer {
 public:
  // `index`: of the list among the CTA's; `first_chunk`: of that list in this CTA.
  __device__ Scorer(const Probing& p, Shared& shared, int index, int first_chunk)
      : p_(p), shared_(shared), index_(index), first_chunk_(first_chunk) {}

  __device__ void LoadRows(int list, int pass) {
    constexpr int kTileWords = S::kSteps * kRowsWords;
    const uint4* from =
        p_.queries + list * p_.query_stride + (pass * 2 + side_) * (S::kRowTiles * kTileWords);
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < S::kSteps; ++j) {
        rows_[tile][j].Load(from + tile * kTileWords + j * kRowsWords);
      }
    }
  }

  // The level's keys of one head; `more`: scores are raised.
  __device__ void ScoreKeys(int64_t head_bytes, bool more) {
    const auto* base = static_cast<const std::byte*>(p_.cache.base) + head_bytes;
    const int64_t* places = shared_.places[index_][side_];
    const int last = shared_.counts[index_] - 1;
    float* scores = shared_.scores[threadIdx.x / 64][side_];
    const auto own = static_cast<int>(threadIdx.x) % 32 / 4;
    StoredKey<S> next;
    next.template Load<true>(base, places[min(own, last)], p_.cache.head_dim);
    for (int first = 0; first <= last; first += kTileChunks) {
      const StoredKey<S> key = next;
      const int chunk = first + own;
      if (first + kTileChunks <= last) {
        const int64_t place = places[min(chunk + kTileChunks, last)];
        next.template Load<true>(base, place, p_.cache.head_dim);
      }
      const float score = Score(key, min(chunk, last));
      if (threadIdx.x % 4 == 0 && chunk <= last) {
        scores[chunk] = more ? fmaxf(scores[chunk], score) : score;
      }
    }
  }

 private:
  __device__ float Score(const StoredKey<S>& stored, int chunk) const {
    Key<S> key(stored);
    if (shared_.lists[index_].rotates_keys) {
      key.Rotate(p_.rope, p_.cache.head_dim / 2, first_chunk_ + chunk);
    }
    float sums[S::kRowTiles][4] = {};
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Products with the same sums wait for each other, so those with others come between.
#pragma unroll
        for (int tile = 0; tile < S::kRowTiles; ++tile) {
          AddHalf(rows_[tile][j], key.chunks[j], half, sums[tile]);
        }
      }
    }
    float even = -INFINITY;
    float odd = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < S::kRowTiles; ++tile) {
      even = fmaxf(even, fmaxf(sums[tile][0], sums[tile][2]));
      odd = fmaxf(odd, fmaxf(sums[tile][1], sums[tile][3]));
    }
    return stored.scale * BestOfRows(even, odd);
  }

  const Probing& p_;
  Shared& shared_;
  int index_;
  int first_chunk_;
  int side_ = static_cast<int>(threadIdx.x) / 32 % 2;
  Rows rows_[S::kRowTiles][S::kSteps];
};

// Writes where the thread's chunk of a list is probed next.
__device__ void Aim(const Probing& p, Shared& shared, int index, int first_chunk, int level) {
  const List& list = shared.lists[index];
  const int chunk = static_cast<int>(threadIdx.x);
  const int64_t start = int64_t{list.chunks.Start(first_chunk + chunk)} * kBlockTokens;
  const Path::Probes at = shared.paths[index][chunk].At(list, level);
  shared.places[index][0][chunk] = KeyPlace(p, list, min(start + at.left, list.end - 1));
  shared.places[index][1][chunk] = KeyPlace(p, list, min(start + at.right, list.end - 1));
}

// The best of what the list's teams found for a key of the thread's chunk.
__device__ float BestOfTeams(const Shared& shared, int first_team, int num_teams, int side) {
  float best = -INFINITY;
  for (int team = first_team; team < first_team + num_teams; ++team) {
    best = fmaxf(best, shared.scores[team][side][threadIdx.x]);
  }
  return best;
}

__device__ void Descend(Shared& shared, int index, int teams, int first_chunk, int level) {
  const List& list = shared.lists[index];
  Path& path = shared.paths[index][threadIdx.x];
  const int chunk = first_chunk + static_cast<int>(threadIdx.x);
  const int64_t start = int64_t{list.chunks.Start(chunk)} * kBlockTokens;
  const int busy = min(teams, list.num_heads * list.num_passes);
  const Path::Probes at = path.At(list, level);
  const float left = BestOfTeams(shared, index * teams, busy, 0);
  const float right = BestOfTeams(shared, index * teams, busy, 1);
  path.Descend(list, level, start + at.left < list.end ? left : -INFINITY,
               start + at.right < list.end ? right : -INFINITY);
}

// Of query blocks [first_block, end_block), those that so many teams share.
template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    PromptProbesKernel(const Probing p, int stage, int first_block, int end_block, int teams) {
  __shared__ Shared shared;
  const auto thread = static_cast<int>(threadIdx.x);
  const int num_lists = kTeams / teams;
  const int first_chunk = static_cast<int>(blockIdx.z) * kChunks;
  const int block = first_block + static_cast<int>(blockIdx.x) * num_lists;
  if (thread < num_lists) {
    const int own = block + thread;
    const int number = own * p.cache.kv_heads + static_cast<int>(blockIdx.y);
    const int count = own < end_block ? p.counts[number] - first_chunk : 0;
    const bool here =
        count > 0 && TeamsFor(p, p.blocks[own], p.selects[p.blocks[own].select], stage) == teams;
    shared.counts[thread] = here ? min(count, kChunks) : 0;
    if (here) shared.lists[thread] = ListOf(p, stage, number);
  }
  __syncthreads();

  int levels = 0;
  for (int i = 0; i < num_lists; ++i) {
    if (shared.counts[i] > 0) levels = max(levels, shared.lists[i].levels);
    if (thread >= shared.counts[i]) continue;
    shared.paths[i][thread] = {0, -INFINITY};
    Aim(p, shared, i, first_chunk, 0);
  }
  __syncthreads();

  const int index = thread / 64 / teams;
  const List& list = shared.lists[index];
  const int num_levels = shared.counts[index] > 0 ? list.levels : 0;
  const int num_passes = num_levels > 0 ? list.num_heads * list.num_passes : 0;
  Scorer<S> scorer(p, shared, index, first_chunk);
  for (int level = 0; level < levels; ++level) {
    for (int pass = thread / 64 % teams; pass < num_passes && level < num_levels; pass += teams) {
      const int head = pass / list.num_passes;
      if (level == 0 || num_passes > teams) {
        scorer.LoadRows(list.first + head, pass % list.num_passes);
      }
      scorer.ScoreKeys(head * kPageBlocks * p.cache.BlockBytes(), pass >= teams);
    }
    __syncthreads();
    for (int i = 0; i < num_lists; ++i) {
      if (thread >= shared.counts[i] || level >= shared.lists[i].levels) continue;
      Descend(shared, i, teams, first_chunk, level);
      if (level + 1 < shared.lists[i].levels) Aim(p, shared, i, first_chunk, level + 1);
    }
    __syncthreads();
  }
  for (int i = 0; i < num_lists; ++i) {
    if (thread >= shared.counts[i]) continue;
    p.scores[shared.lists[i].first * p.score_stride + first_chunk + thread] =
        shared.paths[i][thread].best;
  }
}

template <class Kv>
auto KernelFor(int dim) {
  if (dim == 64) return PromptProbesKernel<Shape<Kv, 64, false>>;
  if (dim == 128) return PromptProbesKernel<Shape<Kv, 128, false>>;
  return PromptProbesKernel<Shape<Kv, 256, true>>;
}

}  // namespace

void ProbeForPrompts(const Probing& p, int stage, int64_t max_chunks, const QueryBlock* blocks,
                     const SelectParams* selects, cudaStream_t stream) {
  const auto kernel =
      p.cache.type == DType::kF8 ? KernelFor<F8Kv>(p.dim) : KernelFor<Bf16Kv>(p.dim);
  for (int teams = 1; teams <= kTeams; teams *= 2) {
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
    const dim3 grid(static_cast<unsigned>(CeilDiv(end - first, kTeams / teams)),
                    static_cast<unsigned>(p.cache.kv_heads),
                    static_cast<unsigned>(CeilDiv(max_chunks, kChunks)));
    kernel<<<grid, kThreads, 0, stream>>>(p, stage, first, end, teams);
    EVERLONG_CUDA_LAUNCHED("hip::PromptProbesKernel");
  }
}

}  // namespace everlong::cuda::hip
