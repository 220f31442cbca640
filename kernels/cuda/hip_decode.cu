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

// Eight keys where left probes are, and eight where right ones are, by the rows of one pass.
template <class S>
class Pass {
 public:
  __device__ void LoadRows(const Probing& p, int list, int pass) {
    const uint4* from = p.queries + list * p.query_stride + pass * (S::kSteps * kRowsWords);
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) rows_[j].Load(from + j * kRowsWords);
  }

  __device__ void LoadKeys(const Probing& p, int64_t head_bytes, int64_t left, int64_t right) {
    const auto* base = static_cast<const std::byte*>(p.cache.base) + head_bytes;
    left_.Load(base, left, p.cache.head_dim);
    right_.Load(base, right, p.cache.head_dim);
  }

  // Raises the best scores of the keys loaded; `number`: of the chunk.
  __device__ void Score(const Probing& p, const List& list, int number, float& left,
                        float& right) const {
    Key<S> left_key(left_);
    Key<S> right_key(right_);
    if (list.rotates_keys) {
      left_key.Rotate(p.rope, p.cache.head_dim / 2, number);
      right_key.Rotate(p.rope, p.cache.head_dim / 2, number);
    }
    float of_left[4] = {};   // of rows as left probes see them in [0] and [1]
    float of_right[4] = {};  // as right probes do in [2] and [3]
#pragma unroll
    for (int j = 0; j < S::kSteps; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        AddHalf(rows_[j], left_key.chunks[j], half, of_left);
        AddHalf(rows_[j], right_key.chunks[j], half, of_right);
      }
    }
    left = fmaxf(left, left_.scale * BestOfRows(of_left[0], of_left[1]));
    right = fmaxf(right, right_.scale * BestOfRows(of_right[2], of_right[3]));
  }

 private:
  Rows rows_[S::kSteps];
  StoredKey<S> left_;
  StoredKey<S> right_;
};

template <class S>
__global__ void __launch_bounds__(32 * kWarps, S::kPadded ? 1 : kResidentCtas)
    DecodedProbesKernel(const Probing p, int stage) {
  const auto number = static_cast<int>(blockIdx.y);
  const int count = p.counts[number];
  int tile = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (tile * kTileChunks >= count) return;
  const List list = ListOf(p, stage, number);
  const int key = static_cast<int>(threadIdx.x) % 32 / 4;
  const int num_passes = list.num_heads * list.num_passes;
  const int64_t head_bytes = kPageBlocks * p.cache.BlockBytes();
  Pass<S> pass;
  if (num_passes == 1) pass.LoadRows(p, number, 0);
  for (; tile * kTileChunks < count; tile += static_cast<int>(gridDim.x) * kWarps) {
    const int chunk = min(tile * kTileChunks + key, count - 1);
    const int64_t start = int64_t{list.chunks.Start(chunk)} * kBlockTokens;
    Path path = {0, -INFINITY};
    for (int level = 0; level < list.levels; ++level) {
      const Level at = list.LevelAt(level);
      const int64_t left_probe = start + path.low + at.left;
      const int64_t right_probe = start + path.low + at.right;
      const int64_t left_key = KeyPlace(p, list, min(left_probe, list.end - 1));
      const int64_t right_key = KeyPlace(p, list, min(right_probe, list.end - 1));
      float left = -INFINITY;
      float right = -INFINITY;
      for (int i = 0; i < num_passes; ++i) {
        const int head = i / list.num_passes;
        pass.LoadKeys(p, head * head_bytes, left_key, right_key);
        if (num_passes > 1) pass.LoadRows(p, number + head, i % list.num_passes);
        pass.Score(p, list, chunk, left, right);
      }
      if (left_probe >= list.end) left = -INFINITY;
      if (right_probe >= list.end) right = -INFINITY;
      path.Descend(list, at, left, right);
    }
    if (threadIdx.x % 4 == 0 && tile * kTileChunks + key < count) {
      p.scores[number * p.score_stride + chunk] = path.best;
    }
  }
}

template <class Kv>
auto KernelFor(int dim) {
  if (dim == 64) return DecodedProbesKernel<Shape<Kv, 64, false>>;
  if (dim == 128) return DecodedProbesKernel<Shape<Kv, 128, false>>;
  return DecodedProbesKernel<Shape<Kv, 256, true>>;
}

}  // namespace

void ProbeForDecoded(const Probing& p, int stage, int64_t max_chunks, const Context& context) {
  const auto kernel =
      p.cache.type == DType::kF8 ? KernelFor<F8Kv>(p.dim) : KernelFor<Bf16Kv>(p.dim);
  const int64_t wanted = CeilDiv(int64_t{kCtasPerSm} * context.num_sms, p.num_lists());
  const int64_t ctas = std::min<int64_t>(CeilDiv(max_chunks, kTileChunks * kWarps), wanted);
  const dim3 grid(static_cast<unsigned>(ctas), static_cast<unsigned>(p.num_lists()));
  kernel<<<grid, 32 * kWarps, 0, context.stream>>>(p, stage);
  EVERLONG_CUDA_LAUNCHED("hip::DecodedProbesKernel");
}

}  // namespace everlong::cuda::hip
