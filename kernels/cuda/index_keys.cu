// The index of the pages that a step completes, one KV head of a page after another.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/key_elements.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxQuads = kMaxHeadDim / 4;  // neighbouring dimensions, whose codes share bytes
constexpr int kLaneQuads = kMaxQuads / 32;
constexpr int kMaxCtas = 1024;

struct Indexing {
  KvCache cache;   // of the layer
  KeyIndex index;  // of the layer
  const int64_t* positions;
  const int32_t* row_sequences;
  const int32_t* pages;
  const int64_t* page_begin;
  int32_t num_rows;
  int32_t cta_rows;
};

struct Room {
  // Of some of the tokens' elements in four dimensions.
  float4 sums[kThreads];
  float4 lows[kThreads];
  float4 highs[kThreads];
  float means[kMaxHeadDim];
  uint32_t codes[kPageTokens * (kMaxQuads + 1)];  // bytes; [token][quads + 1]
};

__device__ float KeepAsF16(float value, __half* to) {
  const __half kept = __float2half_rn(value);
  *to = kept;
  return __half2float(kept);
}

// Where a page's keys are, in each dimension.
struct Place {
  float sum;
  float low;
  float high;
};

// Threads see some of the tokens each, for four dimensions; then one dimension each.
template <class Kv>
__device__ Place FindPlace(const Indexing& x, int64_t page, int head, Room& room) {
  const int dim = x.cache.head_dim;
  const int quads = dim / 4;
  const int slices = min(kThreads / quads, kPageTokens);
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < slices * quads) {
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    float4 low = {INFINITY, INFINITY, INFINITY, INFINITY};
    float4 high = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (int token = thread / quads; token < kPageTokens; token += slices) {
      const auto key = StoredKey<Kv>::At(x.cache, page, head, token);
      float4 four = key.Four(thread % quads * 4);
      four = {four.x * key.scale, four.y * key.scale, four.z * key.scale, four.w * key.scale};
      sum = {sum.x + four.x, sum.y + four.y, sum.z + four.z, sum.w + four.w};
      low = {fminf(low.x, four.x), fminf(low.y, four.y), fminf(low.z, four.z),
             fminf(low.w, four.w)};
      high = {fmaxf(high.x, four.x), fmaxf(high.y, four.y), fmaxf(high.z, four.z),
              fmaxf(high.w, four.w)};
    }
    room.sums[thread] = sum;
    room.lows[thread] = low;
    room.highs[thread] = high;
  }
  __syncthreads();
  Place place = {0.0f, INFINITY, -INFINITY};
  for (int i = thread; thread < dim && i < slices * dim; i += dim) {
    place.sum += reinterpret_cast<const float*>(room.sums)[i];
    place.low = fminf(place.low, reinterpret_cast<const float*>(room.lows)[i]);
    place.high = fmaxf(place.high, reinterpret_cast<const float*>(room.highs)[i]);
  }
  return place;
}

// Thread i has dimension i.
__device__ void WriteRanges(const KeyIndex& index, int64_t page, int head, const Place& place) {
  const int dim = index.head_dim;
  const auto thread = static_cast<int>(threadIdx.x);
  const bool exists = thread < dim;
  const float largest =
      ReduceBlock<kThreads>(exists ? fmaxf(fabsf(place.low), fabsf(place.high)) : 0.0f, Max());
  int exponent = kLeastRangeExponent;
  if (largest > 0.0f) exponent = max(exponent, ilogbf(largest) - 5);
  if (ldexpf(static_cast<float>(kRangeZero - 1), exponent) < largest) ++exponent;
  const float unit = ldexpf(1.0f, -exponent);
  std::byte* of_page = static_cast<std::byte*>(index.ranges) + page * index.RangePageBytes();
  if (thread == 0) of_page[2 * dim * index.kv_heads + head] = static_cast<std::byte>(exponent);
  if (!exists) return;
  const auto code = [&](float x) {
    return static_cast<std::byte>(kRangeZero + static_cast<int>(rintf(x * unit)));
  };
  of_page[2 * dim * head + thread] = code(place.low);
  of_page[2 * dim * head + dim + thread] = code(place.high);
}

// The distance between levels, as in reference/index.cc: by `bits` it follows the largest
// magnitude, the squares or the magnitudes of a token's elements, of which a lane has some.
__device__ float LevelDistance(const float (&x)[kLaneQuads][4], int bits, int dim) {
  float sum = 0.0f;
#pragma unroll
  for (const auto& quad : x) {
    for (const float v : quad) {
      sum = bits == 4 ? fmaxf(sum, fabsf(v)) : sum + (bits == 2 ? v * v : fabsf(v));
    }
  }
  sum = ReduceWarp(sum, [bits](float a, float b) { return bits == 4 ? fmaxf(a, b) : a + b; });
  const auto n = static_cast<float>(dim);
  if (bits == 4) return sum / 7.5f;
  return bits == 2 ? sqrtf(sum / n) : 2.0f * sum / n;
}

// A warp for a token.
template <class Kv>
__device__ void Encode(const Indexing& x, int64_t page, int head, __half* scales, Room& room) {
  const int dim = x.cache.head_dim;
  const int quads = dim / 4;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const auto top = static_cast<float>((1 << x.index.bits) - 1);
  for (int token = threadIdx.x / 32; token < kPageTokens; token += kWarps) {
    const auto key = StoredKey<Kv>::At(x.cache, page, head, token);
    float centred[kLaneQuads][4] = {};
#pragma unroll
    for (int i = 0; i < kLaneQuads; ++i) {
      const int quad = lane + 32 * i;
      if (quad >= quads) continue;
      const float4 four = key.Four(4 * quad);
      const float* mean = room.means + 4 * quad;
      centred[i][0] = four.x * key.scale - mean[0];
      centred[i][1] = four.y * key.scale - mean[1];
      centred[i][2] = four.z * key.scale - mean[2];
      centred[i][3] = four.w * key.scale - mean[3];
    }
    const __half scale = __float2half_rn(LevelDistance(centred, x.index.bits, dim));
    const float distance = __half2float(scale);
    if (lane == 0) scales[token] = scale;
#pragma unroll
    for (int i = 0; i < kLaneQuads; ++i) {
      const int quad = lane + 32 * i;
      if (quad >= quads) continue;
      uint32_t codes = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (distance == 0.0f) continue;
        const float level = rintf(centred[i][j] / distance + top / 2);
        codes |= static_cast<uint32_t>(fminf(fmaxf(level, 0.0f), top)) << (8 * j);
      }
      room.codes[token * (quads + 1) + quad] = codes;
    }
  }
  __syncthreads();
}

// Tokens that lie 8 * bits apart share bytes.
__device__ void WriteCodes(const KeyIndex& index, uint32_t* to, const Room& room) {
  const int quads = index.head_dim / 4;
  const int words = 8 * index.bits;  // of four dimensions
  for (int i = threadIdx.x; i < quads * words; i += kThreads) {
    const uint32_t* from = room.codes + i % words * (quads + 1) + i / words;
    uint32_t packed = 0;
    for (int field = 0; field < 8 / index.bits; ++field) {
      packed |= from[field * words * (quads + 1)] << (field * index.bits);
    }
    to[i] = packed;
  }
}

// Of each CTA's rows, those that stand at the end of a page.
template <class Kv>
__global__ void __launch_bounds__(kThreads) IndexKeysKernel(const Indexing x) {
  __shared__ Room room;
  const auto head = static_cast<int>(blockIdx.y);
  const auto begin = static_cast<int>(blockIdx.x) * x.cta_rows;
  const int end = min(begin + x.cta_rows, x.num_rows);
  for (int row = begin; row < end; ++row) {
    const int64_t position = x.positions[row];
    if (position % kPageTokens != kPageTokens - 1) continue;
    const int64_t page = x.pages[x.page_begin[x.row_sequences[row]] + position / kPageTokens];
    auto* codes = static_cast<std::byte*>(x.index.base) + page * x.index.PageBytes() +
                  head * x.index.HeadBytes();
    auto* scales = reinterpret_cast<__half*>(codes + x.index.CodeBytes());
    const Place place = FindPlace<Kv>(x, page, head, room);
    if (threadIdx.x < x.index.head_dim) {
      const float mean = place.sum / kPageTokens;
      room.means[threadIdx.x] = KeepAsF16(mean, scales + kPageTokens + threadIdx.x);
    }
    WriteRanges(x.index, page, head, place);
    __syncthreads();
    Encode<Kv>(x, page, head, scales, room);
    WriteCodes(x.index, reinterpret_cast<uint32_t*>(codes), room);
  }
}

}  // namespace

void IndexKeys(const IndexKeysArgs& args, const Step& step, Context& context) {
  EVERLONG_CHECK(args.cache.type == DType::kBF16 || args.cache.type == DType::kF8);
  EVERLONG_CHECK(args.cache.head_dim % 8 == 0 && args.cache.head_dim <= kMaxHeadDim);
  Indexing x = {.cache = args.cache,
                .index = args.index,
                .positions = step.positions,
                .row_sequences = step.row_sequences,
                .pages = step.pages,
                .page_begin = step.page_begin,
                .num_rows = step.num_tokens,
                .cta_rows = CeilDiv(step.num_tokens, kMaxCtas)};
  x.cache.base = static_cast<std::byte*>(x.cache.base) + args.layer * x.cache.layer_stride_bytes;
  x.index.base = static_cast<std::byte*>(x.index.base) + args.layer * x.index.layer_stride_bytes;
  x.index.ranges =
      static_cast<std::byte*>(x.index.ranges) + args.layer * x.index.range_stride_bytes;
  const dim3 grid(CeilDiv(x.num_rows, x.cta_rows), x.index.kv_heads);
  const auto kernel = x.cache.type == DType::kF8 ? IndexKeysKernel<F8Kv> : IndexKeysKernel<Bf16Kv>;
  kernel<<<grid, kThreads, 0, context.stream>>>(x);
  EVERLONG_CUDA_LAUNCHED("IndexKeysKernel");
}

}  // namespace everlong::cuda
