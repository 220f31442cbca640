// Between two stages of probing: what was chosen becomes a list, the list the next stage's chunks,
// and query rows are rotated as its probes see them.
#include "kernels/cuda/error.h"
#include "kernels/cuda/hip_chunks.cuh"
#include "kernels/cuda/hip_probing.h"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::hip {
namespace {

constexpr int kThreads = 256;

// The chunks that stage `stage` has chosen, as its list, or as blocks after the last stage.
__device__ void EndStage(const Probing& p, const QueryBlock& block, const SelectParams& params,
                         int stage, int list, int head) {
  const int64_t from = params.all_heads ? list - head : list;
  const int32_t* chosen = p.chosen + from * p.selection.capacity;
  const int count = p.num_chosen[from];
  const Chunks chunks = ChunksOf(p, block, params, stage, head);
  if (stage + 1 < params.num_stages) {
    const int64_t kept = p.selection.List(p.layer, block.slot, head, stage);
    int32_t* to = p.selection.blocks + kept * p.selection.capacity;
    for (int i = threadIdx.x; i < count; i += kThreads) to[i] = chunks.Start(chosen[i]);
    if (threadIdx.x == 0) p.selection.counts[kept] = count;
    return;
  }
  // Only the last chunk may reach past the candidates.
  const auto end = static_cast<int32_t>(block.window_begin / kBlockTokens);
  int total = 0;
  if (count > 0) {
    const int last = min(chunks.length, end - chunks.Start(chosen[count - 1]));
    total = (count - 1) * chunks.length + last;
  }
  int32_t* to = p.final_blocks + int64_t{list} * p.selection.capacity;
  for (int i = threadIdx.x; i < total; i += kThreads) {
    to[i] = chunks.Start(chosen[i / chunks.length]) + i % chunks.length;
  }
  if (threadIdx.x == 0) p.final_counts[list] = total;
}

// Rows of a block, by place in it.
struct RowRange {
  int begin;
  int end;
};
// Those that are pooled to row `number` of one head.
__device__ RowRange RowsOf(const QueryBlock& block, const HipStage& stage, int64_t position,
                           int number) {
  if (!stage.pool_rows) return {number, number + 1};
  const int begin = number * kPooledRows - static_cast<int>(position % kPooledRows);
  return {max(begin, 0), min(begin + kPooledRows, block.num_rows)};
}

// Which query row a row of a list's tiles is, and for which probes.
struct TileRow {
  int row;
  bool left;
};
__device__ TileRow TileRowAt(const Probing& p, int tile, int row) {
  if (p.decode) return {tile * 8 + row % 8, row < 8};
  const int pass = tile / (2 * p.row_tiles);
  const int of_side = pass * p.row_tiles + tile % p.row_tiles;
  return {of_side * 16 + row, tile / p.row_tiles % 2 == 0};
}

// Four neighbouring pairs of dimensions: their first elements and their second ones.
struct Pairs {
  float first[4];
  float second[4];
};

// Of one query head, the mean of rows [begin, end), kPooledRows at most.
__device__ Pairs MeanOfRows(const Probing& p, int64_t begin, int64_t end, int q_head, int pair) {
  const int half_dim = p.cache.head_dim / 2;
  const __nv_bfloat16* q = p.q + begin * p.q_stride + int64_t{q_head} * 2 * half_dim + pair;
  const auto count = static_cast<int>(end - begin);
  Pairs sum = {};
#pragma unroll
  for (int row = 0; row < kPooledRows; ++row) {
    if (row >= count) break;
    const uint2 first = *reinterpret_cast<const uint2*>(q + row * p.q_stride);
    const uint2 second = *reinterpret_cast<const uint2*>(q + row * p.q_stride + half_dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t a = i < 2 ? first.x : first.y;
      const uint32_t b = i < 2 ? second.x : second.y;
      sum.first[i] += i % 2 == 0 ? LowBf16(a) : HighBf16(a);
      sum.second[i] += i % 2 == 0 ? LowBf16(b) : HighBf16(b);
    }
  }
  if (count == 1) return sum;
  const auto divisor = static_cast<float>(count);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum.first[i] /= divisor;
    sum.second[i] /= divisor;
  }
  return sum;
}

__device__ void Rotate(const RopeTable& rope, int half_dim, int position, int pair, Pairs& x) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float4 turns = TurnsOf(rope, half_dim, position, pair + i);
    const float scaled[4] = {turns.x * rope.scale, turns.y * rope.scale, turns.z * rope.scale,
                             turns.w * rope.scale};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float cos = scaled[2 * k];
      const float sin = scaled[2 * k + 1];
      const float a = x.first[i + k];
      const float b = x.second[i + k];
      x.first[i + k] = a * cos - b * sin;
      x.second[i + k] = b * cos + a * sin;
    }
  }
}

// Where a query row stands, seen from probed keys, or from 0 where those are rotated too.
__device__ int QueryPosition(const SelectParams& params, const HipStage& stage, bool left,
                             int64_t position, int64_t num_chunks) {
  if (stage.every_key) return params.distance;
  switch (params.probes) {
    case ProbePositions::kRelative:
      return params.distance + (left ? 1 : 0);
    case ProbePositions::kChunk:
      return static_cast<int>(min(position, num_chunks + params.distance));
    case ProbePositions::kNone:
      break;
  }
  return 0;
}

// What of a list's query rows does not depend on which of them it is.
struct Queries {
  int list;
  int first_head;
  int per_head;    // rows
  int num_rows;    // of all heads
  int num_chunks;  // that are probed
  int64_t position;
};

// A row of a list's tiles, as the probes of a stage see it. Rows past the last one repeat it.
__device__ Pairs PairsOf(const Probing& p, const QueryBlock& block, const SelectParams& params,
                         const HipStage& stage, const Queries& queries, TileRow at, int pair) {
  const int half_dim = p.cache.head_dim / 2;
  if (pair >= half_dim) return {};
  const int row = min(at.row, queries.num_rows - 1);
  const RowRange rows = RowsOf(block, stage, queries.position, row % queries.per_head);
  Pairs x = MeanOfRows(p, block.first_row + rows.begin, block.first_row + rows.end,
                       queries.first_head + row / queries.per_head, pair);
  if (p.rotate) {
    const int64_t position = queries.position + rows.begin;
    Rotate(p.rope, half_dim, QueryPosition(params, stage, at.left, position, queries.num_chunks),
           pair, x);
  }
  return x;
}

// Every thread writes a lane's words of a tile, eight bytes of two rows' vectors.
__device__ void WriteQueries(const Probing& p, const QueryBlock& block, const SelectParams& params,
                             const HipStage& stage, const Queries& queries) {
  const int half_steps = p.dim / 64;
  const int items = CeilDiv(queries.num_rows, p.pass_rows()) * p.pass_tiles() * half_steps * 64;
  uint4* to = p.queries + queries.list * p.query_stride;
  for (int item = threadIdx.x; item < items; item += kThreads) {
    const int lane = item % 32;
    const int half = item / 32 % 2;
    const int step = item / 64 % half_steps;
    const int tile = item / 64 / half_steps;
    const int pair = 32 * step + 8 * (lane % 4) + 4 * half;
    Pairs x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TileRow at = TileRowAt(p, tile, lane / 4 + 8 * i);
      x[i] = PairsOf(p, block, params, stage, queries, at, pair);
    }
    uint4* words = to + ((int64_t{tile} * 2 * half_steps + step) * 2 + half) * 32 + lane;
    words[0] = {PackBf16(x[0].first[0], x[0].first[1]), PackBf16(x[1].first[0], x[1].first[1]),
                PackBf16(x[0].first[2], x[0].first[3]), PackBf16(x[1].first[2], x[1].first[3])};
    words[half_steps * 64] = {
        PackBf16(x[0].second[0], x[0].second[1]), PackBf16(x[1].second[0], x[1].second[1]),
        PackBf16(x[0].second[2], x[0].second[3]), PackBf16(x[1].second[2], x[1].second[3])};
  }
}

__global__ void __launch_bounds__(kThreads)
    ChangeStageKernel(const Probing p, int stage, bool first) {
  const auto list = static_cast<int>(blockIdx.x);
  const int head = list % p.cache.kv_heads;
  const QueryBlock& block = p.blocks[list / p.cache.kv_heads];
  if (threadIdx.x == 0) {
    p.counts[list] = 0;
    p.keeps[list] = 0;
    if (first) p.final_counts[list] = -1;
  }
  if (!Probes(block, p.selects)) return;
  const SelectParams& params = p.selects[block.select];
  if (Runs(block, params, stage - 1)) EndStage(p, block, params, stage - 1, list, head);
  if (!Runs(block, params, stage)) return;
  __syncthreads();  // the list that ended is read
  const int num_chunks = NumChunks(p, block, params, stage, head);
  if (threadIdx.x == 0 && !(params.all_heads && head > 0)) {
    p.counts[list] = num_chunks;
    p.keeps[list] = min(params.stages[stage].keep_chunks, p.selection.capacity);
  }
  const int64_t position = p.positions[block.first_row];
  const int per_head = RowsPerHead(block, params.stages[stage], position);
  const Queries queries = {.list = list,
                           .first_head = head * p.group,
                           .per_head = per_head,
                           .num_rows = p.group * per_head,
                           .num_chunks = num_chunks,
                           .position = position};
  WriteQueries(p, block, params, params.stages[stage], queries);
}

}  // namespace

void ChangeStage(const Probing& p, int stage, bool first, cudaStream_t stream) {
  ChangeStageKernel<<<static_cast<unsigned>(p.num_lists()), kThreads, 0, stream>>>(p, stage, first);
  EVERLONG_CUDA_LAUNCHED("hip::ChangeStageKernel");
}

}  // namespace everlong::cuda::hip
