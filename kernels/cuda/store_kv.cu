// The step's keys and values on their way into the cache: a warp for every head of every token,
// whose lanes hold four neighbouring elements at a time.
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 256;
constexpr int kLaneParts = kMaxHeadDim / 128;

// A head's vector, part i of lane l being elements 4 (l + 32 i) .. + 3. Absent ones are zero.
struct HeadVector {
  float x[kLaneParts][4];
};

__device__ int ElementOf(int part) {
  return 4 * (threadIdx.x % 32 + 32 * part);
}

__device__ HeadVector Load(const uint16_t* from, int dim) {
  HeadVector vector = {};
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    if (ElementOf(i) >= dim) continue;
    const uint2 four = *reinterpret_cast<const uint2*>(from + ElementOf(i));
    vector.x[i][0] = LowBf16(four.x);
    vector.x[i][1] = HighBf16(four.x);
    vector.x[i][2] = LowBf16(four.y);
    vector.x[i][3] = HighBf16(four.y);
  }
  return vector;
}

__device__ void StoreBf16(const HeadVector& vector, int dim, uint16_t* to) {
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    if (ElementOf(i) >= dim) continue;
    *reinterpret_cast<uint2*>(to + ElementOf(i)) = {PackBf16(vector.x[i][0], vector.x[i][1]),
                                                    PackBf16(vector.x[i][2], vector.x[i][3])};
  }
}

__device__ float MaxOrNan(float a, float b) {
  float max;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(a), "f"(b));
  return max;
}

__device__ void StoreF8(const HeadVector& vector, int dim, std::byte* to, float* scale) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    for (const float x : vector.x[i]) largest = MaxOrNan(largest, fabsf(x));
  }
  largest = ReduceWarp(largest, MaxOrNan);
  const float stored = largest / 448.0f;
  if (threadIdx.x % 32 == 0) *scale = stored;
  const float divisor = stored == 0.0f ? 1.0f : stored;
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    if (ElementOf(i) >= dim) continue;
    uint32_t four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t bits =
          __nv_cvt_float_to_fp8(vector.x[i][j] / divisor, __NV_SATFINITE, __NV_E4M3);
      four |= bits << (8 * j);
    }
    *reinterpret_cast<uint32_t*>(to + ElementOf(i)) = four;
  }
}

__device__ void Normalize(HeadVector& vector, int dim, const float* weight, float eps) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    for (const float x : vector.x[i]) squares += x * x;
  }
  for (int lanes = 1; lanes < 32; lanes *= 2) squares += __shfl_xor_sync(~0u, squares, lanes);
  const float factor = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
#pragma unroll
  for (int i = 0; i < kLaneParts; ++i) {
    if (ElementOf(i) >= dim) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) vector.x[i][j] *= factor * weight[ElementOf(i) + j];
  }
}

// Places in the layer's pages.
struct Cache {
  std::byte* base;
  int64_t page_bytes;
  int64_t block_bytes;
  bool f8;
};

// A token's place in the cache, of one head. It is looked up before the wait for the kernel ahead:
// the step's upload ended before the step's first kernel began, and L2 has what it brought.
struct Place {
  std::byte* block;
  int row;  // of the block's keys, then values
};

__device__ Place PlaceOf(const Cache& cache, const Step& step, int64_t token, int kv_head,
                         bool is_value) {
  const int64_t position = __ldcg(step.positions + token);
  const int64_t first_page = __ldcg(step.page_begin + __ldcg(step.row_sequences + token));
  const int64_t page = __ldcg(step.pages + first_page + position / kPageTokens);
  const auto slot = static_cast<int>(position % kPageTokens);
  std::byte* block = cache.base + page * cache.page_bytes +
                     (kv_head * kPageBlocks + slot / kBlockTokens) * cache.block_bytes;
  return {block, (is_value ? kBlockTokens : 0) + slot % kBlockTokens};
}

__device__ void StoreVector(const HeadVector& vector, int dim, bool f8, const Place& place) {
  if (f8) {
    auto* scales = reinterpret_cast<float*>(place.block + 2 * kBlockTokens * dim);
    StoreF8(vector, dim, place.block + place.row * dim, scales + place.row);
  } else {
    StoreBf16(vector, dim, reinterpret_cast<uint16_t*>(place.block) + place.row * dim);
  }
}

// Vectors of a token from `first_head` on: its query heads, key heads and value heads.
__global__ void __launch_bounds__(32 * kWarps)
    StoreHeads(StoreKvArgs args, Cache cache, Step step, int first_head) {
  const int dim = args.cache.head_dim;
  const int kv_heads = args.cache.kv_heads;
  const int heads = args.q_heads + 2 * kv_heads;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t token = i / (heads - first_head);
  const int head = first_head + static_cast<int>(i % (heads - first_head));
  const bool is_value = head >= args.q_heads + kv_heads;
  const bool is_stored = token < step.num_tokens && head >= args.q_heads;
  Place place = {};
  if (is_stored) {
    place = PlaceOf(cache, step, token, (head - args.q_heads) % kv_heads, is_value);
  }
  LetNextStart();
  WaitForPrevious();
  if (token >= step.num_tokens) return;
  uint16_t* at = static_cast<uint16_t*>(args.qkv) + (token * heads + head) * dim;
  HeadVector vector = Load(at, dim);
  if (head < args.q_heads) {
    Normalize(vector, dim, args.q_norm, args.eps);
    StoreBf16(vector, dim, at);
    return;
  }
  if (!is_value && args.k_norm != nullptr) Normalize(vector, dim, args.k_norm, args.eps);
  StoreVector(vector, dim, cache.f8, place);
}

}  // namespace

void StoreKv(const StoreKvArgs& args, const Step& step, Context& context) {
  const KvCache& cache = args.cache;
  EVERLONG_CHECK(cache.type == DType::kBF16 || cache.type == DType::kF8);
  EVERLONG_CHECK(cache.head_dim % 8 == 0 && cache.head_dim <= kMaxHeadDim);
  const int first_head = args.q_norm == nullptr ? args.q_heads : 0;
  const int64_t vectors =
      int64_t{step.num_tokens} * (args.q_heads + 2 * cache.kv_heads - first_head);
  const Cache places = {
      .base = static_cast<std::byte*>(cache.base) + args.layer * cache.layer_stride_bytes,
      .page_bytes = cache.PageBytes(),
      .block_bytes = cache.BlockBytes(),
      .f8 = cache.type == DType::kF8};
  LaunchDependent(context, StoreHeads, dim3(static_cast<uint32_t>((vectors + kWarps - 1) / kWarps)),
                  32 * kWarps, 0, args, places, step, first_head);
}

namespace {

struct PagedMemory {
  void* base;
  int64_t layer_stride_bytes;
  int64_t page_bytes;
};

void CopyPage(const PagedMemory& memory, int64_t layer, int64_t from, int64_t to,
              cudaStream_t stream) {
  auto* pages = static_cast<std::byte*>(memory.base) + layer * memory.layer_stride_bytes;
  EVERLONG_CUDA(cudaMemcpyAsync(pages + to * memory.page_bytes, pages + from * memory.page_bytes,
                                static_cast<size_t>(memory.page_bytes), cudaMemcpyDeviceToDevice,
                                stream));
}

}  // namespace

// Forks are rare and copy a page each.
void CopyPages(const CopyPagesArgs& args, Context& context) {
  const PagedMemory cache = {args.cache.base, args.cache.layer_stride_bytes,
                             args.cache.PageBytes()};
  const PagedMemory index = {args.index.base, args.index.layer_stride_bytes,
                             args.index.PageBytes()};
  const PagedMemory ranges = {args.index.ranges, args.index.range_stride_bytes,
                              args.index.RangePageBytes()};
  for (int64_t layer = 0; layer < args.num_layers; ++layer) {
    for (int32_t i = 0; i < args.num_pages; ++i) {
      CopyPage(cache, layer, args.from[i], args.to[i], context.stream);
      if (index.base != nullptr) {
        CopyPage(index, layer, args.from[i], args.to[i], context.stream);
        CopyPage(ranges, layer, args.from[i], args.to[i], context.stream);
      }
    }
  }
}

}  // namespace everlong::cuda
