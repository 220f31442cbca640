// Between two stages of probing: what was chosen becomes a list, the list the next stage's chunks,
// and query rows are rotated as its probes see them.
#include "kernels/cuda/error.h"
#include "kernels/cuda/hip_chunks.cuh"
#include "kernels/cuda/hip_keys.cuh"
#include "kernels/cuda/hip_probing.h"

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

struct RowPair {
  float2 low;   // of two neighbouring dimensions
  float2 high;  // of those that they rotate with
};

// Of one query head, the mean of rows [begin, end).
__device__ RowPair MeanOfRows(const Probing& p, int64_t begin, int64_t end, int q_head, int dim) {
  const int half = p.cache.head_dim / 2;
  RowPair sum = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  for (int64_t row = begin; row < end; ++row) {
    const __nv_bfloat16* q = p.q + row * p.q_stride + int64_t{q_head} * p.cache.head_dim + dim;
    const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q));
    const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q + half));
    sum.low = {sum.low.x + low.x, sum.low.y + low.y};
    sum.high = {sum.high.x + high.x, sum.high.y + high.y};
  }
  const auto count = static_cast<float>(end - begin);
  return {{sum.low.x / count, sum.low.y / count}, {sum.high.x / count, sum.high.y / count}};
}

// Where the query stands from probed keys, or from 0 where those are rotated.
__device__ int64_t QueryPosition(const SelectParams& params, const HipStage& stage, bool left,
                                 int64_t position, int64_t num_chunks) {
  if (stage.every_key) return params.distance;
  switch (params.probes) {
    case ProbePositions::kRelative:
      return params.distance + (left ? 1 : 0);
    case ProbePositions::kChunk:
      return min(position, num_chunks + params.distance);
    case ProbePositions::kNone:
      break;
  }
  return 0;
}

// Which 32 bits of a list's query tiles hold two dimensions of a row: `dim`, even, of the lower
// half, or with `high` those that they rotate with.
__device__ int64_t QueryWord(const HeadShape& shape, int tile, int row, int dim, bool high) {
  const int width = shape.aligned ? 8 : 4;
  const int slot = dim / width;
  const int lane = row % 8 * 4 + slot % 4;
  const int step = shape.aligned ? slot / 4 * 2 + (high ? 1 : 0) : slot / 4;
  const int element = dim % width + (!shape.aligned && high ? 4 : 0);
  const int reg = element % 4 / 2 * 2 + row / 8;
  const int64_t at = (int64_t{tile} * shape.steps + step) * 2 + element / 4;
  return (at * 32 + lane) * 4 + reg;
}

__device__ uint32_t Pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Rows past the last one repeat it.
__device__ void WriteQueries(const Probing& p, const QueryBlock& block, const SelectParams& params,
                             const HipStage& stage, int list, int head, int64_t num_chunks) {
  const int half = p.cache.head_dim / 2;
  const int64_t position = p.positions[block.first_row];
  const int per_head = RowsPerHead(block, stage, position);
  const int num_rows = p.group * per_head;
  const int skew = static_cast<int>(position % kPooledRows);
  const int row_pairs = p.shape.steps * 8;
  const int items = CeilDiv(num_rows, p.pass_rows()) * p.pass_tiles() * 16 * row_pairs;
  auto* to = reinterpret_cast<uint32_t*>(p.queries + list * p.query_stride);
  for (int item = threadIdx.x; item < items; item += kThreads) {
    const int dim = item % row_pairs * 2;
    const int tile_row = item / row_pairs % 16;
    const int tile = item / row_pairs / 16;
    uint32_t& low = to[QueryWord(p.shape, tile, tile_row, dim, false)];
    uint32_t& high = to[QueryWord(p.shape, tile, tile_row, dim, true)];
    if (dim >= half) {
      low = high = 0;
      continue;
    }
    const int side_tile =
        tile / (2 * p.shape.row_tiles) * p.shape.row_tiles + tile % p.shape.row_tiles;
    const bool left = p.decode ? tile_row < 8 : tile / p.shape.row_tiles % 2 == 0;
    const int wanted = p.decode ? tile * 8 + tile_row % 8 : side_tile * 16 + tile_row;
    const int row = min(wanted, num_rows - 1);
    const int number = row % per_head;
    int begin = number;
    int end = number + 1;
    if (stage.pool_rows) {
      begin = max(number * kPooledRows - skew, 0);
      end = min((number + 1) * kPooledRows - skew, block.num_rows);
    }
    RowPair x = MeanOfRows(p, block.first_row + begin, block.first_row + end,
                           head * p.group + row / per_head, dim);
    if (p.rotate) {
      const Turns turns = TurnsAt(
          p.rope, half, QueryPosition(params, stage, left, position + begin, num_chunks), dim);
      const float scale = p.rope.scale;
      turns.Apply(x.low, x.high);
      x = {{x.low.x * scale, x.low.y * scale}, {x.high.x * scale, x.high.y * scale}};
    }
    low = Pack(x.low.x, x.low.y);
    high = Pack(x.high.x, x.high.y);
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
  WriteQueries(p, block, params, params.stages[stage], list, head, num_chunks);
}

}  // namespace

void ChangeStage(const Probing& p, int stage, bool first, cudaStream_t stream) {
  ChangeStageKernel<<<static_cast<unsigned>(p.num_lists()), kThreads, 0, stream>>>(p, stage, first);
  EVERLONG_CUDA_LAUNCHED("hip::ChangeStageKernel");
}

}  // namespace everlong::cuda::hip
