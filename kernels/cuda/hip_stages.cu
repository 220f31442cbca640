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

// Which 32 bits of a list's tiles hold dimensions `dim`, even, and dim + 1 of a row.
__device__ int64_t QueryWord(const Probing& p, int tile, int row, int dim) {
  const int lane = row % 8 * 4 + dim % 32 / 8;
  const int half = dim % 8 / 4;
  const int word = dim % 4 / 2 * 2 + row / 8;
  return (((int64_t{tile} * (p.dim / 32) + dim / 32) * 2 + half) * 32 + lane) * 4 + word;
}

// Two neighbouring pairs of dimensions: their first elements and their second ones.
struct Pairs {
  float2 first;
  float2 second;
};

// Of one query head, the mean of rows [begin, end).
__device__ Pairs MeanOfRows(const Probing& p, int64_t begin, int64_t end, int q_head, int pair) {
  const int head_dim = p.cache.head_dim;
  Pairs sum = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  for (int64_t row = begin; row < end; ++row) {
    const __nv_bfloat16* q = p.q + row * p.q_stride + int64_t{q_head} * head_dim + pair;
    const auto first = *reinterpret_cast<const uint32_t*>(q);
    const auto second = *reinterpret_cast<const uint32_t*>(q + head_dim / 2);
    sum.first = {sum.first.x + LowBf16(first), sum.first.y + HighBf16(first)};
    sum.second = {sum.second.x + LowBf16(second), sum.second.y + HighBf16(second)};
  }
  const auto count = static_cast<float>(end - begin);
  return {{sum.first.x / count, sum.first.y / count}, {sum.second.x / count, sum.second.y / count}};
}

__device__ Pairs Rotated(const RopeTable& rope, const Pairs& x, int half_dim, int position,
                         int pair) {
  float4 turns = TurnsOf(rope, half_dim, position, pair);
  turns = {turns.x * rope.scale, turns.y * rope.scale, turns.z * rope.scale, turns.w * rope.scale};
  const auto [a, b] = x;
  return {{a.x * turns.x - b.x * turns.y, a.y * turns.z - b.y * turns.w},
          {b.x * turns.x + a.x * turns.y, b.y * turns.z + a.y * turns.w}};
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

// The query rows of a list, as the probes of a stage see them. Rows past the last one repeat it.
__device__ void WriteQueries(const Probing& p, const QueryBlock& block, const SelectParams& params,
                             const HipStage& stage, int list, int num_chunks) {
  const int half_dim = p.cache.head_dim / 2;
  const int64_t position = p.positions[block.first_row];
  const int per_head = RowsPerHead(block, stage, position);
  const int num_rows = p.group * per_head;
  const int first_head = list % p.cache.kv_heads * p.group;
  const int row_items = p.dim / 4;
  const int items = CeilDiv(num_rows, p.pass_rows()) * p.pass_tiles() * 16 * row_items;
  auto* to = reinterpret_cast<uint32_t*>(p.queries + list * p.query_stride);
  for (int item = threadIdx.x; item < items; item += kThreads) {
    const int pair = item % row_items * 2;
    const int tile = item / row_items / 16;
    const int tile_row = item / row_items % 16;
    Pairs x = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    if (pair < half_dim) {
      const TileRow at = TileRowAt(p, tile, tile_row);
      const int row = min(at.row, num_rows - 1);
      const RowRange rows = RowsOf(block, stage, position, row % per_head);
      x = MeanOfRows(p, block.first_row + rows.begin, block.first_row + rows.end,
                     first_head + row / per_head, pair);
      const int seen = QueryPosition(params, stage, at.left, position + rows.begin, num_chunks);
      if (p.rotate) x = Rotated(p.rope, x, half_dim, seen, pair);
    }
    to[QueryWord(p, tile, tile_row, pair)] = PackBf16(x.first.x, x.first.y);
    to[QueryWord(p, tile, tile_row, pair + p.dim / 2)] = PackBf16(x.second.x, x.second.y);
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
  WriteQueries(p, block, params, params.stages[stage], list, num_chunks);
}

}  // namespace

void ChangeStage(const Probing& p, int stage, bool first, cudaStream_t stream) {
  ChangeStageKernel<<<static_cast<unsigned>(p.num_lists()), kThreads, 0, stream>>>(p, stage, first);
  EVERLONG_CUDA_LAUNCHED("hip::ChangeStageKernel");
}

}  // namespace everlong::cuda::hip
