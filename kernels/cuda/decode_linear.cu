// Products of decoded rows. They are bound by reading the weights, of which each lane keeps several
// units of 16 bytes per row on their way, in shared memory that it alone reads; the first are on
// their way before the kernel ahead has ended. The tensor cores take them as the A operand of
// m16n8k16; eight rows of x are B. Both operands number the inputs alike but not as they lie: each
// lane holds consecutive ones of its rows.
//
// CTAs take tiles of outputs in turns, their warps units of inputs. Sums are added in an order that
// depends on the matrix alone, so that a row does not depend on the rows beside it.
//
// A row that comes alone is laid in shared memory first, and may be normalised on the way. Of
// several rows, the inputs that go with a unit of weights are copied with it. A tile may be half of
// gates and half of what they act on.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/decoded_product.cuh"
#include "kernels/cuda/decoded_row.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace decoded {
namespace {

// Of a thread's sums of a tile, where they go and what goes with them.
template <class S>
struct Places {
  int row[S::kThreadSums];
  int output[S::kThreadSums];
  Output::Terms terms[S::kThreadSums];

  __device__ Places(const Product& p, int tile) {
#pragma unroll
    for (int j = 0; j < S::kThreadSums; ++j) {
      const int i = j * kThreads + static_cast<int>(threadIdx.x);
      row[j] = static_cast<int>(blockIdx.x) * S::kRows + i / S::kTileOutputs;
      output[j] = OutputOf<S>(p, tile, i % S::kTileOutputs);
      if (i >= S::kRows * S::kTileOutputs || output[j] >= p.outputs) row[j] = p.rows;
      if (row[j] < p.rows) terms[j] = p.output.TermsOf(row[j], output[j]);
    }
  }
};

// Adds up what the warps have summed, and stores it.
template <class S>
__device__ void StoreTile(const Product& p, const Places<S>& places,
                          const float (&warp_sums)[kWarps][S::kRows][S::kTileOutputs + 4]) {
#pragma unroll
  for (int j = 0; j < S::kThreadSums; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    const bool exists = places.row[j] < p.rows;
    float sum = 0.0f;
    if (exists) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum += warp_sums[w][i / S::kTileOutputs][i % S::kTileOutputs];
      }
      sum = places.terms[j].Finish(sum);
      p.output.Store(places.row[j], places.output[j], sum);
    }
    if (p.gated == nullptr) continue;
    const float other = __shfl_down_sync(~0u, sum, S::kHalf);
    if (!exists || i % S::kTileOutputs >= S::kHalf) continue;
    p.gated[places.row[j] * int64_t{p.half_stride} + places.output[j]] =
        ActivateGate(__float2bfloat16_rn(sum), __float2bfloat16_rn(other));
  }
}

// Grid: (groups of rows, CTAs that share the tiles). Groups of rows are neighbours, so that they
// find each other's weights in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, S::kCtas)
    MultiplyRows(const __grid_constant__ Product p) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<typename S::Shared*>(memory);
  uint4* const row = memory + sizeof(typename S::Shared) / sizeof(uint4);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Stream<S> stream(p, shared.rings[warp]);
#pragma unroll
  for (int i = 0; i < S::kDepth; ++i) {
    stream.StartWeights();
    EndCopies();
  }
  LetNextStart();
  if constexpr (S::kAlone) {
    LayRow<S>(p, row);
  } else {
    WaitForPrevious();
#pragma unroll
    for (int i = 0; i < S::kDepth; ++i) {
      stream.StartInputs();
      EndCopies();
    }
  }
  for (int tile = blockIdx.y; tile < p.tiles; tile += gridDim.y) {
    const Places<S> places(p, tile);
    float sums[S::kLaneRows / 2][S::kTokenTiles][4] = {};
    for (int unit = warp; unit < p.units; unit += kWarps) {
      uint4 vectors[S::kUnitVectors];
      stream.Read(vectors);
      if constexpr (S::kAlone) {
        const uint4* x = row + (unit * 4 + lane % 4) * S::kVectors;
        uint4 mine[S::kVectors];
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) mine[i] = x[i];
        AddUnit<S>(vectors, mine, sums);
      } else {
        AddUnit<S>(vectors, vectors + S::kLaneRows, sums);
      }
      stream.StartWeights();
      stream.StartInputs();
      EndCopies();
    }
    __syncthreads();  // sums of the tile before may still be read
#pragma unroll
    for (int m = 0; m < S::kLaneRows / 2; ++m) {
#pragma unroll
      for (int n = 0; n < S::kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = 8 * n + lane % 4 * 2 + i % 2;
          if (r < S::kRows) shared.sums[warp][r][16 * m + lane / 4 + i / 2 * 8] = sums[m][n][i];
        }
      }
    }
    __syncthreads();
    StoreTile<S>(p, places, shared.sums);
  }
  AwaitCopies<0>();
}

template <class S>
int64_t SharedBytes(const MatMulArgs& args) {
  const int64_t units = CeilDiv(args.w.cols, S::kUnit);
  return static_cast<int64_t>(sizeof(typename S::Shared)) +
         (S::kAlone ? units * S::kUnit * int64_t{sizeof(BF16)} : 0);
}

template <class W>
using Alone = Shape<W, 0, 16, 64 << 10>;

bool RunsAlone(const MatMulArgs& args) {
  const int64_t bytes =
      args.w.type == DType::kF8 ? SharedBytes<Alone<F8>>(args) : SharedBytes<Alone<BF16>>(args);
  return args.rows == 1 && bytes <= MaxSharedBytes();
}

template <class S>
Product Describe(const ProductCalls& calls, const Step& step) {
  const MatMulArgs& args = *calls.product;
  const auto outputs = static_cast<int32_t>(args.w.rows);
  const auto inputs = static_cast<int32_t>(args.w.cols);
  Product product = {.weights = args.w.data,
                     .x = static_cast<const BF16*>(args.x),
                     .x_stride = args.x_stride,
                     .rows = args.rows,
                     .outputs = outputs,
                     .inputs = inputs,
                     .units = CeilDiv(inputs, S::kUnit),
                     .tiles = CeilDiv(outputs, S::kTileOutputs),
                     .tile_stride = S::kTileOutputs,
                     .half_stride = S::kHalf,
                     .output = Output::Of(args),
                     .gated = nullptr,
                     .norm = {}};
  if (calls.gate != nullptr) {
    product.tile_stride = S::kHalf;
    product.half_stride = calls.gate->width;
    product.gated = static_cast<BF16*>(calls.gate->out);
  }
  if (const RmsNormArgs* norm = calls.norm) {
    EVERLONG_CHECK(norm->first_output < step.num_outputs);
    product.norm = {
        .x = norm->x,
        .weight = norm->weight,
        .source_row = norm->first_output < 0 ? nullptr : step.output_rows + norm->first_output,
        .out = static_cast<BF16*>(norm->out),
        .eps = norm->eps};
  }
  return product;
}

template <class S>
void LaunchShape(const ProductCalls& calls, const Step& step, Context& context) {
  const Product product = Describe<S>(calls, step);
  const auto kernel = MultiplyRows<S>;
  const auto shared = static_cast<int>(SharedBytes<S>(*calls.product));
  [[maybe_unused]] static const bool allowed = AllowSharedMemory(kernel, MaxSharedBytes());
  int ctas = 0;  // that a multiprocessor holds
  EVERLONG_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas, kernel, kThreads,
                                                              static_cast<size_t>(shared)));
  const auto groups = static_cast<uint32_t>(CeilDiv(product.rows, S::kRows));
  const auto sharing = static_cast<uint32_t>(
      std::min(product.tiles, std::max(1, ctas * context.num_sms / static_cast<int>(groups))));
  LaunchDependent(context, kernel, dim3(groups, sharing), kThreads, shared, product);
}

template <class W>
void Launch(const ProductCalls& calls, const Step& step, Context& context) {
  const int32_t rows = calls.product->rows;
  if (RunsAlone(*calls.product)) {
    LaunchShape<Alone<W>>(calls, step, context);
  } else if (rows <= 8) {
    LaunchShape<Shape<W, 1, 16, 64 << 10>>(calls, step, context);
  } else if (rows <= 16 || context.architecture < 90) {
    LaunchShape<Shape<W, 2, 32, 72 << 10>>(calls, step, context);
  } else {
    LaunchShape<Shape<W, 4, 32, 144 << 10>>(calls, step, context);
  }
}

}  // namespace
}  // namespace decoded

bool TakesNorm(const MatMulArgs& args, const RmsNormArgs& norm) {
  const auto addresses = reinterpret_cast<uintptr_t>(norm.x) |
                         reinterpret_cast<uintptr_t>(norm.weight) |
                         reinterpret_cast<uintptr_t>(norm.out);
  return decoded::RunsAlone(args) && norm.width <= decoded::Norm::kMaxWidth && addresses % 16 == 0;
}

bool TakesGate(const GatedActivationArgs& gate) {
  return gate.width % 16 == 0;
}

void MultiplyDecoded(const ProductCalls& calls, const Step& step, Context& context) {
  if (calls.product->w.type == DType::kF8) {
    decoded::Launch<F8>(calls, step, context);
  } else {
    decoded::Launch<BF16>(calls, step, context);
  }
}

}  // namespace everlong::cuda
