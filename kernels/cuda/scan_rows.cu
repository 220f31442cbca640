// What a scan starts from: each list's query rows as they see every key, and how long lists are.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scanning.h"
#include "kernels/cuda/turn.cuh"

namespace everlong::cuda::scan {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// A lane has two neighbouring dimensions of the lower half and those that they rotate with, for
// every 128 dimensions.
constexpr int kLaneParts = kMaxHeadDim / 128;

struct Part {
  float2 low;
  float2 high;
};

struct LaneRow {
  Part parts[kLaneParts];  // absent ones are zero

  __device__ static int Dim(int part) {
    return 2 * (static_cast<int>(threadIdx.x) % 32 + 32 * part);
  }

  template <class Visit>
  __device__ void ForEach(const Visit& visit) const {
#pragma unroll
    for (const Part& part : parts) {
      visit(part.low.x);
      visit(part.low.y);
      visit(part.high.x);
      visit(part.high.y);
    }
  }
};

__device__ LaneRow LoadRow(const Scanning& s, int64_t row, int q_head, int distance) {
  const int half = s.cache.head_dim / 2;
  const __nv_bfloat16* q = s.q + row * s.q_stride + int64_t{q_head} * s.cache.head_dim;
  LaneRow lane = {};
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    const int dim = LaneRow::Dim(i);
    if (dim >= half) continue;
    const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q + dim));
    const float2 high =
        __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q + half + dim));
    lane.parts[i] = {low, high};
    if (!s.rotate) continue;
    const float4 turns = TurnsOf(s.rope, half, distance, dim);
    const float scale = s.rope.scale;
    lane.parts[i].low = {(low.x * turns.x - high.x * turns.y) * scale,
                         (low.y * turns.z - high.y * turns.w) * scale};
    lane.parts[i].high = {(high.x * turns.x + low.x * turns.y) * scale,
                          (high.y * turns.z + low.y * turns.w) * scale};
  }
  return lane;
}

// `to`: the row's number among those of all lists.
__device__ void StoreRow(const Scanning& s, const LaneRow& lane, int64_t to) {
  const int half = s.cache.head_dim / 2;
  float largest = 0.0f;
  lane.ForEach([&](float x) { largest = fmaxf(largest, fabsf(x)); });
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, lanes));
  }
  const float scale = largest / 127.0f;
  const auto round = [&](float x) {
    return scale == 0.0f ? 0 : static_cast<int>(rintf(x / scale));
  };
  int sum = 0;
  lane.ForEach([&](float x) { sum += round(x); });
  sum = __reduce_add_sync(kAll, sum);
  float* row = s.rows + to * s.cache.head_dim;
  int8_t* bytes = s.bytes + to * s.byte_dims();
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    const int dim = LaneRow::Dim(i);
    if (dim >= half) continue;
    const Part& part = lane.parts[i];
    *reinterpret_cast<float2*>(row + dim) = part.low;
    *reinterpret_cast<float2*>(row + half + dim) = part.high;
    *reinterpret_cast<char2*>(bytes + dim) = make_char2(round(part.low.x), round(part.low.y));
    *reinterpret_cast<char2*>(bytes + half + dim) =
        make_char2(round(part.high.x), round(part.high.y));
  }
  const int lane_number = threadIdx.x % 32;
  for (int dim = 2 * half + lane_number; dim < s.byte_dims(); dim += 32) bytes[dim] = 0;
  if (lane_number == 0) s.totals[to] = {scale, static_cast<float>(sum)};
}

__device__ void DescribeList(const Scanning& s, const QueryBlock& block, int list) {
  s.counts[list] = 0;
  s.keeps[list] = 0;
  s.rerank_keeps[list] = 0;
  s.num_reranked[list] = 0;
  s.num_chosen[list] = 0;
  s.dilations[list] = 0;
  if (!Scans(block, s.selects)) return;
  const SelectParams& params = s.selects[block.select];
  const int32_t count = EndCandidate(block) - FirstCandidate(block);
  s.counts[list] = count;
  if (params.all_heads && list % s.cache.kv_heads > 0) return;
  s.keeps[list] = params.keep_blocks;
  s.dilations[list] = params.dilation;
  if (params.rerank > 1) {
    const int64_t keep = int64_t{params.keep_blocks} * params.rerank;
    s.rerank_keeps[list] = static_cast<int32_t>(min(keep, int64_t{count}));
  }
}

// By one warp.
__device__ void CountParts(const Scanning& s) {
  const auto lane = static_cast<int>(threadIdx.x);
  int total = 0;
  for (int first = 0; first < s.num_blocks; first += 32) {
    const int i = first + lane;
    const int own = i < s.num_blocks && Scans(s.blocks[i], s.selects)
                        ? DivisionOf(s, s.blocks[i]).num_parts()
                        : 0;
    const int sum = InclusiveSum(own);
    if (i < s.num_blocks) s.first_parts[i + 1] = total + sum;
    total += __shfl_sync(kAll, sum, 31);
  }
  if (lane == 0) s.first_parts[0] = 0;
}

// A CTA for each list, and one more for what they are together.
__global__ void __launch_bounds__(kThreads) PrepareListsKernel(const Scanning s) {
  WaitForPrevious();
  LetNextStart();
  const auto list = static_cast<int>(blockIdx.x);
  if (list == s.num_lists()) {
    if (threadIdx.x < 32) CountParts(s);
    return;
  }
  const int head = list % s.cache.kv_heads;
  const QueryBlock& block = s.blocks[list / s.cache.kv_heads];
  if (threadIdx.x == 0) DescribeList(s, block, list);
  if (!Scans(block, s.selects)) return;
  const int last = block.num_rows * s.group - 1;
  for (int i = threadIdx.x / 32; i < s.NumRows(block); i += kWarps) {
    const int row = min(i, last);
    const LaneRow lane =
        LoadRow(s, block.first_row + row % block.num_rows, head * s.group + row / block.num_rows,
                s.selects[block.select].distance);
    StoreRow(s, lane, list * s.row_stride + i);
  }
}

}  // namespace

void PrepareLists(const Scanning& s, const Context& context) {
  const auto ctas = static_cast<unsigned>(s.num_lists() + 1);
  LaunchDependent(context, PrepareListsKernel, dim3(ctas), kThreads, 0, s);
}

}  // namespace everlong::cuda::scan
