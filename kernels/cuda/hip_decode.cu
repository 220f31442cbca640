// Probing for decoded tokens, which have a row for each query head: products are few beside the
// keys to fetch, so every warp follows eight chunks down on its own, and many warps hide how long
// memory takes.
#include <algorithm>

#include "kernels/cuda/error.h"
#include "kernels/cuda/hip_chunks.cuh"
#include "kernels/cuda/hip_keys.cuh"
#include "kernels/cuda/hip_probing.h"

namespace everlong::cuda::hip {
namespace {

constexpr int kWarps = 4;
constexpr int kResidentCtas = 4;  // of an SM, at least
constexpr int kCtasPerSm = 16;    // so many that lists of unequal lengths still fill the device

// Eight keys that left probes see, and eight that right ones do, by the rows of one pass.
template <int kDim, DType kType>
class Pass {
 public:
  static constexpr HeadShape kShape = kHeadShape<kDim>;

  __device__ void LoadRows(const Probing& p, int list, int pass) {
    const uint4* from = p.queries + list * p.query_stride + pass * (kShape.steps * 64);
#pragma unroll
    for (int step = 0; step < kShape.steps; ++step) {
      const uint4* at = from + step * 64 + threadIdx.x % 32;
      rows_[step][0] = {{at[0], at[32]}};
    }
  }

  __device__ void LoadKeys(const Probing& p, int64_t head_bytes, int64_t left, int64_t right) {
    const auto* base = static_cast<const std::byte*>(p.cache.base) + head_bytes;
    left_.Load(base, left, p.cache.head_dim, threadIdx.x % 4);
    right_.Load(base, right, p.cache.head_dim, threadIdx.x % 4);
  }

  // Raises the best scores of the keys loaded.
  __device__ void Score(const Probing& p, const List& list, int number, float& left,
                        float& right) const {
    Key<kDim> left_key(left_);
    Key<kDim> right_key(right_);
    if (list.rotates_keys) {
      left_key.Rotate(p.rope, p.cache.head_dim / 2, number, threadIdx.x % 4);
      right_key.Rotate(p.rope, p.cache.head_dim / 2, number, threadIdx.x % 4);
    }
    float of_left[1][4] = {};
    float of_right[1][4] = {};
#pragma unroll
    for (int step = 0; step < kShape.steps; ++step) {
      AddProducts(rows_[step], left_key.elements[step], of_left);
      AddProducts(rows_[step], right_key.elements[step], of_right);
    }
    const int lane = threadIdx.x % 32;
    left = fmaxf(left, left_.scale * BestOfRows(of_left[0][0], of_left[0][1], lane));
    right = fmaxf(right, right_.scale * BestOfRows(of_right[0][2], of_right[0][3], lane));
  }

 private:
  QueryStep rows_[kShape.steps][1];
  StoredKey<kDim, kType> left_;
  StoredKey<kDim, kType> right_;
};

template <int kDim, DType kType>
__global__ void __launch_bounds__(32 * kWarps, kDim == 0 ? 1 : kResidentCtas)
    DecodedProbesKernel(const Probing p, int stage) {
  const auto number = static_cast<int>(blockIdx.y);
  const int count = p.counts[number];
  int tile = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (tile * kTileChunks >= count) return;
  const List list = ListOf(p, stage, number);
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  const int num_passes = list.num_heads * list.num_passes;
  const int64_t head_bytes = kPageBlocks * p.cache.BlockBytes();
  Pass<kDim, kType> pass;
  if (num_passes == 1) pass.LoadRows(p, number, 0);
  for (; tile * kTileChunks < count; tile += static_cast<int>(gridDim.x) * kWarps) {
    const int chunk = min(tile * kTileChunks + group, count - 1);
    const int64_t start = int64_t{list.chunks.Start(chunk)} * kBlockTokens;
    Path path = {0, -INFINITY};
    for (int level = 0; level < list.levels; ++level) {
      const Path::Probes at = path.At(list, level);
      const int64_t left_key = KeyPlace(p, list, min(start + at.left, list.end - 1));
      const int64_t right_key = KeyPlace(p, list, min(start + at.right, list.end - 1));
      float left = -INFINITY;
      float right = -INFINITY;
      for (int i = 0; i < num_passes; ++i) {
        const int head = i / list.num_passes;
        pass.LoadKeys(p, head * head_bytes, left_key, right_key);
        if (num_passes > 1) pass.LoadRows(p, number + head, i % list.num_passes);
        pass.Score(p, list, chunk, left, right);
      }
      if (start + at.left >= list.end) left = -INFINITY;
      if (start + at.right >= list.end) right = -INFINITY;
      path.Descend(list, level, left, right);
    }
    if (threadIdx.x % 4 == 0 && tile * kTileChunks + group < count) {
      p.scores[number * p.score_stride + chunk] = path.best;
    }
  }
}

template <int kDim>
auto KernelFor(DType type) {
  return type == DType::kF8 ? DecodedProbesKernel<kDim, DType::kF8>
                            : DecodedProbesKernel<kDim, DType::kBF16>;
}

}  // namespace

void ProbeForDecoded(const Probing& p, int stage, int64_t max_chunks, const Context& context) {
  const int head_dim = p.cache.head_dim;
  const auto kernel = head_dim == 64    ? KernelFor<64>(p.cache.type)
                      : head_dim == 128 ? KernelFor<128>(p.cache.type)
                                        : KernelFor<0>(p.cache.type);
  const int64_t wanted = CeilDiv(int64_t{kCtasPerSm} * context.num_sms, p.num_lists());
  const int64_t ctas = std::min<int64_t>(CeilDiv(max_chunks, kTileChunks * kWarps), wanted);
  const dim3 grid(static_cast<unsigned>(ctas), static_cast<unsigned>(p.num_lists()));
  kernel<<<grid, 32 * kWarps, 0, context.stream>>>(p, stage);
  EVERLONG_CUDA_LAUNCHED("hip::DecodedProbesKernel");
}

}  // namespace everlong::cuda::hip
