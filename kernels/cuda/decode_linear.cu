// Products of decoded rows. They are bound by reading the weights, of which each lane keeps several
// units of 16 bytes per row on their way, in shared memory that it alone reads; the first are on
// their way before the kernel ahead has ended. The tensor cores take them as the A operand of
// m16n8k16; eight rows of x are B. Both operands number the inputs alike but not as they lie: each
// lane holds consecutive ones of its rows.
//
// A CTA computes kTileOutputs outputs; its warps take units of inputs in turns, and where there are
// few tiles several CTAs share one. Their sums are added in a fixed order. All of it depends on the
// matrix and the device alone, so that a row does not depend on the rows beside it.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/linear-inl.h"

namespace everlong::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kTileOutputs = 32;
constexpr int kLaneRows = kTileOutputs / 8;  // rows of w of which a lane holds inputs
constexpr int kDepth = 4;                    // units of weights that are on their way
constexpr int kCtasPerSm = 3;                // that fit, of few tokens
constexpr int kMaxCounters = 1 << 16;

// Inputs of a row that a lane loads at once, and all lanes.
template <class W>
constexpr int kLaneInputs = 16 / sizeof(W);
template <class W>
constexpr int kUnit = 4 * kLaneInputs<W>;

template <class W>
struct Product {
  const W* weights;
  const BF16* x;
  int64_t x_stride;
  int32_t rows;
  int32_t outputs;
  int32_t inputs;
  int32_t splits;      // CTAs that share a tile
  float* parts;        // [tiles][splits][rows of a CTA][kTileOutputs]
  uint32_t* counters;  // [tiles], zero between launches
  Output output;
};

// Copies 16 bytes to shared memory, or zeros where not `valid`.
__device__ void CopyAsync(uint4* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
                 "r"(valid ? 16 : 0)
               : "memory");
}
__device__ void EndCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for this lane's copies but for those of the latest kCount groups.
template <int kCount>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kCount) : "memory");
}

// c += a b, m16n8k16.
__device__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ uint32_t Word(const uint4& v, int i) {
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
// those of rows lane / 4 + 8 i of the tokens.
template <class W, int kTokenTiles>
__device__ void AddUnit(const uint4 (&w)[kLaneRows],
                        const uint4 (&x)[kTokenTiles][kLaneInputs<W> / 8],
                        float (&sums)[kLaneRows / 2][kTokenTiles][4]) {
#pragma unroll
  for (int i = 0; i < kLaneInputs<W> / 2; i += 2) {
#pragma unroll
    for (int m = 0; m < kLaneRows / 2; ++m) {
      const uint32_t a[4] = {Pair<W>(w[2 * m], i), Pair<W>(w[2 * m + 1], i),
                             Pair<W>(w[2 * m], i + 1), Pair<W>(w[2 * m + 1], i + 1)};
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        MultiplyAdd(sums[m][n], a, Word(x[n][i / 4], i % 4), Word(x[n][i / 4], i % 4 + 1));
      }
    }
  }
}

// What a warp has in shared memory, in turn.
template <int kRows>
union WarpMemory {
  uint4 weights[kDepth][kLaneRows][32];
  float sums[kRows][kTileOutputs + 4];  // the padding keeps the lanes of a store in different banks
};

// The warp's share of the sums of a CTA's tile, over its units of [begin, end).
template <class W, int kTokenTiles>
__device__ void AddUnits(const Product<W>& p, int first_row, int first_output, int begin, int end,
                         uint4 (&weights)[kDepth][kLaneRows][32],
                         float (&sums)[kLaneRows / 2][kTokenTiles][4]) {
  constexpr int kVectors = kLaneInputs<W> / 8;  // of 16 bytes, of a lane's inputs in x
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_unit = begin + static_cast<int>(threadIdx.x) / 32;
  const int first_input = lane % 4 * kLaneInputs<W>;
  // Rows past the last one repeat it; what becomes of them is not stored.
  const W* w_rows[kLaneRows];
  const BF16* x_rows[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kLaneRows; ++i) {
    const int64_t row = min(first_output + 8 * i + lane / 4, p.outputs - 1);
    w_rows[i] = p.weights + row * p.inputs + first_input;
  }
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    const int64_t row = min(first_row + 8 * i + lane / 4, p.rows - 1);
    x_rows[i] = p.x + row * p.x_stride + first_input;
  }
  const auto exists = [&](int unit) {
    return unit < end && unit * kUnit<W> + first_input < p.inputs;
  };
  const auto start = [&](int stage, int unit) {
    const bool valid = exists(unit);
    const int input = valid ? unit * kUnit<W> : 0;
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      CopyAsync(&weights[stage][i][lane], w_rows[i] + input, valid);
    }
    EndCopies();
  };
#pragma unroll
  for (int stage = 0; stage < kDepth; ++stage) start(stage, first_unit + stage * kWarps);
  LetNextStart();
  WaitForPrevious();
  uint4 x[kTokenTiles][kVectors];
  const auto load_x = [&](int unit) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      const auto* from = reinterpret_cast<const uint4*>(x_rows[i] + unit * kUnit<W>);
#pragma unroll
      for (int j = 0; j < kVectors; ++j) x[i][j] = exists(unit) ? from[j] : uint4{};
    }
  };
  load_x(first_unit);
  int stage = 0;
  for (int unit = first_unit; unit < end; unit += kWarps) {
    WaitForCopies<kDepth - 1>();
    uint4 w[kLaneRows];
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) w[i] = weights[stage][i][lane];
    AddUnit<W, kTokenTiles>(w, x, sums);
    start(stage, unit + kDepth * kWarps);
    load_x(unit + kWarps);  // on its way during the wait
    stage = stage + 1 == kDepth ? 0 : stage + 1;
  }
  WaitForCopies<0>();
}

// Whether this CTA is the last of those that share its tile to get here.
__device__ bool ComesLast(uint32_t* counter, int splits) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == static_cast<uint32_t>(splits - 1);
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// Grid: (groups of rows, tiles of outputs, splits). Groups of rows are neighbours, so that they
// find each other's weights in the cache.
template <class W, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, kTokenTiles < 4 ? kCtasPerSm : 2)
    MultiplyRows(const Product<W> p) {
  constexpr int kRows = 8 * kTokenTiles;
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int first_output = static_cast<int>(blockIdx.y) * kTileOutputs;
  const int split = static_cast<int>(blockIdx.z);
  const int units = (p.inputs + kUnit<W> - 1) / kUnit<W>;
  extern __shared__ uint4 shared[];
  auto* warps = reinterpret_cast<WarpMemory<kRows>*>(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float sums[kLaneRows / 2][kTokenTiles][4] = {};
  AddUnits<W, kTokenTiles>(p, first_row, first_output, units * split / p.splits,
                           units * (split + 1) / p.splits, warps[warp].weights, sums);

  __syncwarp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < kLaneRows / 2; ++m) {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * n + lane % 4 * 2 + i % 2;
        warps[warp].sums[row][16 * m + lane / 4 + i / 2 * 8] = sums[m][n][i];
      }
    }
  }
  __syncthreads();

  const int64_t tile = blockIdx.y * int64_t{gridDim.x} + blockIdx.x;
  float* parts = p.parts + tile * p.splits * kRows * kTileOutputs;
  float totals[kRows * kTileOutputs / kThreads];
#pragma unroll
  for (int j = 0; j < kRows * kTileOutputs / kThreads; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    totals[j] = 0.0f;
    for (int w = 0; w < kWarps; ++w) totals[j] += warps[w].sums[i / kTileOutputs][i % kTileOutputs];
    if (p.splits > 1) parts[split * kRows * kTileOutputs + i] = totals[j];
  }
  if (p.splits > 1 && !ComesLast(p.counters + tile, p.splits)) return;
#pragma unroll
  for (int j = 0; j < kRows * kTileOutputs / kThreads; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    if (p.splits > 1) {
      totals[j] = 0.0f;
      for (int s = 0; s < p.splits; ++s) totals[j] += __ldcg(parts + s * kRows * kTileOutputs + i);
    }
    const int row = first_row + i / kTileOutputs;
    const int output = first_output + i % kTileOutputs;
    if (row < p.rows && output < p.outputs) p.output.Store(row, output, totals[j]);
  }
}

// As many CTAs as the device holds at once, while each warp has the units of two rounds at least.
template <class W>
int32_t NumSplits(const Matrix& w, int num_sms) {
  const int64_t tiles = (w.rows + kTileOutputs - 1) / kTileOutputs;
  const int64_t most = w.cols / (kUnit<W> * kWarps * 2 * kDepth);
  const int64_t ctas = int64_t{kCtasPerSm} * num_sms;
  return static_cast<int32_t>(std::max<int64_t>(1, std::min(ctas / tiles, most)));
}

template <class W, int kTokenTiles>
void Launch(const MatMulArgs& args, Context& context) {
  constexpr int kRows = 8 * kTokenTiles;
  const auto groups = static_cast<uint32_t>((args.rows + kRows - 1) / kRows);
  const auto tiles = static_cast<uint32_t>((args.w.rows + kTileOutputs - 1) / kTileOutputs);
  const int32_t splits = NumSplits<W>(args.w, context.num_sms);
  Product<W> product = {.weights = static_cast<const W*>(args.w.data),
                        .x = static_cast<const BF16*>(args.x),
                        .x_stride = args.x_stride,
                        .rows = args.rows,
                        .outputs = static_cast<int32_t>(args.w.rows),
                        .inputs = static_cast<int32_t>(args.w.cols),
                        .splits = splits,
                        .parts = nullptr,
                        .counters = nullptr,
                        .output = Output::Of(args)};
  if (splits > 1) {
    // Counters come first, so that they are where they were whatever the parts' size.
    const int64_t cta_tiles = int64_t{groups} * tiles;
    EVERLONG_CHECK(cta_tiles <= kMaxCounters);
    product.counters = context.scratch.Get<uint32_t>(
        Scratch::kMatMulParts, kMaxCounters + cta_tiles * splits * kRows * kTileOutputs);
    product.parts = reinterpret_cast<float*>(product.counters + kMaxCounters);
  }
  constexpr int kShared = kWarps * sizeof(WarpMemory<kRows>);
  const auto kernel = MultiplyRows<W, kTokenTiles>;
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(kernel, kShared);
  LaunchDependent(context, kernel, dim3(groups, tiles, static_cast<uint32_t>(splits)), kThreads,
                  kShared, product);
}

template <class W>
void Launch(const MatMulArgs& args, Context& context) {
  if (args.rows <= 8) {
    Launch<W, 1>(args, context);
  } else if (args.rows <= 16) {
    Launch<W, 2>(args, context);
  } else {
    Launch<W, 4>(args, context);
  }
}

}  // namespace

void MultiplyDecoded(const MatMulArgs& args, Context& context) {
  if (args.w.type == DType::kF8) {
    Launch<F8>(args, context);
  } else {
    Launch<BF16>(args, context);
  }
}

}  // namespace everlong::cuda
