// What a kernel of decoded products is given, and how its warps read weights and inputs.
#pragma once

#include "kernels/cuda/linear-inl.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/row_math.cuh"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::decoded {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * 32;
static_assert(kThreads == kNormThreads);

// kTokenTiles: of eight rows, of which a CTA takes so many. 0: there is one row, which is alone.
template <class W, int kTokenTiles_, int kTileOutputs_, int kRingBytes>
struct Shape {
  using Weight = W;
  static constexpr bool kAlone = kTokenTiles_ == 0;
  static constexpr int kTokenTiles = kAlone ? 1 : kTokenTiles_;
  static constexpr int kRows = kAlone ? 1 : 8 * kTokenTiles;
  static constexpr int kTileOutputs = kTileOutputs_;
  static constexpr int kHalf = kTileOutputs / 2;
  static constexpr int kLaneRows = kTileOutputs / 8;  // rows of w of which a lane holds inputs
  // Inputs of a row that a lane loads at once, and all lanes.
  static constexpr int kLaneInputs = 16 / sizeof(W);
  static constexpr int kUnit = 4 * kLaneInputs;
  static constexpr int kVectors = kLaneInputs / 8;  // of 16 bytes, of a lane's inputs in x
  // Vectors of a lane in a unit, of w and then x, and units that are on their way.
  static constexpr int kUnitVectors = kLaneRows + (kAlone ? 0 : kTokenTiles * kVectors);
  static constexpr int kDepth = kRingBytes / (kWarps * kUnitVectors * 32 * 16);
  static_assert(kDepth >= 2);
  static constexpr int kThreadSums = (kRows * kTileOutputs + kThreads - 1) / kThreads;
  static constexpr int kCtas = kRingBytes <= 64 << 10 ? 3 : kRingBytes <= 80 << 10 ? 2 : 1;

  using Ring = uint4[kDepth][kUnitVectors][32];
  struct Shared {
    Ring rings[kWarps];
    // The padding keeps the lanes of a store in different banks.
    float sums[kWarps][kRows][kTileOutputs + 4];
  };  // and then, of a row that is alone, its inputs in whole units
};

// The norm of the one row, or none.
struct Norm {
  const float* x;  // null: none
  const float* weight;
  const int32_t* source_row;  // of x; null: the first
  BF16* out;
  float eps;

  static constexpr int kThreadVectors = 5;  // of four elements
  static constexpr int64_t kMaxWidth = int64_t{kThreadVectors} * kThreads * 4;
};

struct Product {
  const void* weights;
  const BF16* x;
  int64_t x_stride;
  int32_t rows;
  int32_t outputs;
  int32_t inputs;
  int32_t units;
  int32_t tiles;
  // Output i of a tile's half h is number tile * tile_stride + h * half_stride + i.
  int32_t tile_stride;
  int32_t half_stride;
  Output output;
  BF16* gated;  // [rows][half_stride]; null: tiles are not of gates
  Norm norm;
};

template <class S>
__device__ int OutputOf(const Product& p, int tile, int i) {
  return tile * p.tile_stride + i / S::kHalf * p.half_stride + i % S::kHalf;
}

// As CopyAsync; CTAs beside this one find what they share with it.
__device__ inline void CopyThroughL1(uint32_t to, const void* from, bool exist) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(exist ? 16 : 0)
               : "memory");
}

// What a warp reads of the weights, of the CTA's tiles, one after the other, every kWarps-th unit;
// and with it, where no row is alone, the same inputs of x.
template <class S>
class Stream {
 public:
  __device__ Stream(const Product& p, typename S::Ring& ring)
      : p_(p), ring_(ring), unit_(threadIdx.x / 32), tile_(blockIdx.y), x_unit_(unit_) {
    if constexpr (!S::kAlone) {
#pragma unroll
      for (int i = 0; i < S::kTokenTiles; ++i) {
        const int row = static_cast<int>(blockIdx.x) * S::kRows + 8 * i + Group();
        x_rows_[i] = row < p.rows ? p.x + row * p.x_stride + Place() : nullptr;
      }
    }
  }

  // Starts to copy the next unit of weights, zeros past the ends.
  __device__ void StartWeights() {
    if (tile_ < p_.tiles) {
      const int input = unit_ * S::kUnit + Place();
#pragma unroll
      for (int i = 0; i < S::kLaneRows; ++i) {
        const int row = OutputOf<S>(p_, tile_, 8 * i + Group());
        const bool exists = input < p_.inputs && row < p_.outputs;
        const auto* weights = static_cast<const typename S::Weight*>(p_.weights);
        const auto* from = exists ? weights + int64_t{row} * p_.inputs + input : weights;
        CopyAsync<16>(SharedAddress(&ring_[end_][i][threadIdx.x % 32]), from, exists);
      }
    }
    end_ = Next(end_);
    unit_ += kWarps;
    if (unit_ >= p_.units) {
      unit_ = threadIdx.x / 32;
      tile_ += gridDim.y;
    }
  }

  // Starts to copy the next unit of x.
  __device__ void StartInputs() {
    if constexpr (!S::kAlone) {
      const bool in_row = x_unit_ * S::kUnit + Place() < p_.inputs;
#pragma unroll
      for (int i = 0; i < S::kTokenTiles; ++i) {
        const bool exists = in_row && x_rows_[i] != nullptr;
        const BF16* from = exists ? x_rows_[i] + x_unit_ * S::kUnit : p_.x;
#pragma unroll
        for (int j = 0; j < S::kVectors; ++j) {
          uint4* to = &ring_[x_end_][S::kLaneRows + i * S::kVectors + j][threadIdx.x % 32];
          CopyThroughL1(SharedAddress(to), from + 8 * j, exists);
        }
      }
      x_end_ = Next(x_end_);
      x_unit_ = x_unit_ + kWarps < p_.units ? x_unit_ + kWarps : threadIdx.x / 32;
    }
  }

  // Waits for the first of kDepth units that were started, in whose place the next one goes.
  __device__ void Read(uint4 (&vectors)[S::kUnitVectors]) const {
    AwaitCopies<S::kDepth - 1>();
#pragma unroll
    for (int i = 0; i < S::kUnitVectors; ++i) vectors[i] = ring_[end_][i][threadIdx.x % 32];
  }

 private:
  // A lane holds inputs from Place() of a unit on, of rows Group() + 8 i.
  __device__ static int Place() {
    return threadIdx.x % 4 * S::kLaneInputs;
  }
  __device__ static int Group() {
    return threadIdx.x % 32 / 4;
  }
  __device__ static int Next(int place) {
    return place + 1 == S::kDepth ? 0 : place + 1;
  }

  const Product& p_;
  typename S::Ring& ring_;
  int unit_;
  int tile_;
  int end_ = 0;
  int x_unit_;
  int x_end_ = 0;
  const BF16* x_rows_[S::kTokenTiles];
};

__device__ inline uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Inputs 2i and 2i + 1 of those in v, as bf16.
template <class W>
__device__ uint32_t Pair(const uint4& v, int i) {
  if constexpr (sizeof(W) == 1) {
    return ExpandF8(Word(v, i / 2), i % 2);
  } else {
    return Word(v, i);
  }
}

// The unit of a lane's inputs, of which `w` holds those of rows lane / 4 + 8 i of the tile and `x`
// those of rows lane / 4 + 8 i of the tokens, kVectors of each.
template <class S>
__device__ void AddUnit(const uint4* w, const uint4* x,
                        float (&sums)[S::kLaneRows / 2][S::kTokenTiles][4]) {
  using W = typename S::Weight;
#pragma unroll
  for (int i = 0; i < S::kLaneInputs / 2; i += 2) {
#pragma unroll
    for (int m = 0; m < S::kLaneRows / 2; ++m) {
      const uint32_t a[4] = {Pair<W>(w[2 * m], i), Pair<W>(w[2 * m + 1], i),
                             Pair<W>(w[2 * m], i + 1), Pair<W>(w[2 * m + 1], i + 1)};
#pragma unroll
      for (int n = 0; n < S::kTokenTiles; ++n) {
        const uint4& some = x[n * S::kVectors + i / 4];
        MultiplyAdd(sums[m][n], a, Word(some, i % 4), Word(some, i % 4 + 1));
      }
    }
  }
}

}  // namespace everlong::cuda::decoded
