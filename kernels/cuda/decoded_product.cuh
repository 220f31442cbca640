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

// kAlone: there is one row. Else CTAs take 8 * kTokenTiles of them.
template <class W, int kTokenTiles_, int kTileOutputs_, bool kAlone_>
struct Shape {
  using Weight = W;
  static constexpr bool kAlone = kAlone_;
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kRows = kAlone ? 1 : 8 * kTokenTiles;
  static constexpr int kTileOutputs = kTileOutputs_;
  static constexpr int kHalf = kTileOutputs / 2;
  static constexpr int kLaneRows = kTileOutputs / 8;  // rows of w of which a lane holds inputs
  static constexpr int kDepth = 16 / kLaneRows;       // units of weights that are on their way
  // Inputs of a row that a lane loads at once, and all lanes.
  static constexpr int kLaneInputs = 16 / sizeof(W);
  static constexpr int kUnit = 4 * kLaneInputs;
  static constexpr int kVectors = kLaneInputs / 8;  // of 16 bytes, of a lane's inputs in x
  static constexpr int kThreadSums = (kRows * kTileOutputs + kThreads - 1) / kThreads;
  static constexpr int kCtas = kTileOutputs == 16 ? 3 : 2;  // of a multiprocessor, at most

  struct Shared {
    uint4 weights[kWarps][kDepth][kLaneRows][32];
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

// What a warp reads of the weights: of the CTA's tiles, one after the other, every kWarps-th unit.
template <class S>
class Stream {
 public:
  __device__ Stream(const Product& p, uint4 (&room)[S::kDepth][S::kLaneRows][32])
      : p_(p), room_(room), unit_(threadIdx.x / 32), tile_(blockIdx.y) {}

  // Starts to copy the next unit, zeros past the ends.
  __device__ void Start() {
    if (tile_ < p_.tiles) {
      const int lane = threadIdx.x % 32;
      const int input = unit_ * S::kUnit + lane % 4 * S::kLaneInputs;
#pragma unroll
      for (int i = 0; i < S::kLaneRows; ++i) {
        const int row = OutputOf<S>(p_, tile_, 8 * i + lane / 4);
        const bool exists = input < p_.inputs && row < p_.outputs;
        const auto* weights = static_cast<const typename S::Weight*>(p_.weights);
        const auto* from = exists ? weights + int64_t{row} * p_.inputs + input : weights;
        CopyAsync<16>(SharedAddress(&room_[end_][i][lane]), from, exists);
      }
    }
    EndCopies();
    end_ = end_ + 1 == S::kDepth ? 0 : end_ + 1;
    unit_ += kWarps;
    if (unit_ >= p_.units) {
      unit_ = threadIdx.x / 32;
      tile_ += gridDim.y;
    }
  }

  // Waits for the first of kDepth units that were started, in whose place the next one goes.
  __device__ void Read(uint4 (&w)[S::kLaneRows]) const {
    AwaitCopies<S::kDepth - 1>();
#pragma unroll
    for (int i = 0; i < S::kLaneRows; ++i) w[i] = room_[end_][i][threadIdx.x % 32];
  }

 private:
  const Product& p_;
  uint4 (&room_)[S::kDepth][S::kLaneRows][32];
  int unit_;
  int tile_;
  int end_ = 0;
};

// A lane's inputs of rows lane / 4 + 8 i, of one unit.
template <class S>
class Inputs {
 public:
  // `row`: the one that is alone.
  __device__ Inputs(const Product& p, const uint4* row) : p_(p) {
    const int first = threadIdx.x % 4 * S::kLaneInputs;
#pragma unroll
    for (int i = 0; i < S::kTokenTiles; ++i) {
      // Rows past the last one repeat it; what becomes of them is not stored.
      const int r = min(
          static_cast<int>(blockIdx.x) * S::kRows + 8 * i + static_cast<int>(threadIdx.x) % 32 / 4,
          p.rows - 1);
      rows_[i] =
          S::kAlone ? reinterpret_cast<const BF16*>(row) + first : p.x + r * p.x_stride + first;
    }
  }

  __device__ void Load(int unit) {
    const int end = S::kAlone ? p_.units * S::kUnit : p_.inputs;
    const bool exists = unit * S::kUnit + static_cast<int>(threadIdx.x) % 4 * S::kLaneInputs < end;
#pragma unroll
    for (int i = 0; i < S::kTokenTiles; ++i) {
      const auto* from = reinterpret_cast<const uint4*>(rows_[i] + unit * S::kUnit);
#pragma unroll
      for (int j = 0; j < S::kVectors; ++j) x[i][j] = exists ? from[j] : uint4{};
    }
  }

  uint4 x[S::kTokenTiles][S::kVectors];

 private:
  const Product& p_;
  const BF16* rows_[S::kTokenTiles];
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

// The unit of a lane's inputs, of which `w` holds those of rows lane / 4 + 8 i of the tile.
template <class S>
__device__ void AddUnit(const uint4 (&w)[S::kLaneRows],
                        const uint4 (&x)[S::kTokenTiles][S::kVectors],
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
        MultiplyAdd(sums[m][n], a, Word(x[n][i / 4], i % 4), Word(x[n][i / 4], i % 4 + 1));
      }
    }
  }
}

}  // namespace everlong::cuda::decoded
