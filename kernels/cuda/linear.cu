#include <algorithm>
#include <bit>

#include "kernels/check.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/linear-inl.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {
namespace {

constexpr int kThreads = 256;
// Of weights widened to bf16, and of sums that wait for their bias.
constexpr int64_t kWideBytes = int64_t{32} << 20;
constexpr int64_t kSumBytes = int64_t{32} << 20;

uint32_t Blocks(int64_t count) {
  return static_cast<uint32_t>((count + kThreads - 1) / kThreads);
}

// One warp per sum, whatever the alignment.
template <class W>
__global__ void MultiplyPlainly(const W* w, const BF16* x, int64_t x_stride, int64_t rows,
                                int64_t outputs, int64_t inputs, const Output output) {
  const int64_t warp = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= rows * outputs) return;
  const int64_t r = warp / outputs;
  const int64_t n = warp % outputs;
  float sum = 0.0f;
  for (int64_t k = lane; k < inputs; k += 32) {
    sum += static_cast<float>(x[r * x_stride + k]) * static_cast<float>(w[n * inputs + k]);
  }
  sum = ReduceWarp(sum, Sum());
  if (lane == 0) output.StoreSum(r, n, sum);
}

void MultiplyPlainly(const MatMulArgs& args, Context& context) {
  const Matrix& w = args.w;
  const auto launch = [&](const auto* weights) {
    MultiplyPlainly<<<Blocks(args.rows * w.rows * 32), kThreads, 0, context.stream>>>(
        weights, static_cast<const BF16*>(args.x), args.x_stride, args.rows, w.rows, w.cols,
        Output::Of(args));
  };
  if (w.type == DType::kF8) {
    launch(static_cast<const F8*>(w.data));
  } else {
    launch(static_cast<const BF16*>(w.data));
  }
  EVERLONG_CUDA_LAUNCHED("MultiplyPlainly");
}

// Eight elements per thread; `inputs` is a multiple of eight.
__global__ void Widen(const uint2* w, const float* scales, int64_t inputs, int64_t eighths,
                      uint4* out) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= eighths) return;
  const __nv_bfloat162 scale = __float2bfloat162_rn(scales[i * 8 / inputs]);
  const auto scaled = [&](uint32_t bytes, int pair) {
    const uint32_t wide = ExpandF8(bytes, pair);
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(wide), scale);
    return reinterpret_cast<const uint32_t&>(value);
  };
  const uint2 bytes = w[i];
  out[i] = {scaled(bytes.x, 0), scaled(bytes.x, 1), scaled(bytes.y, 0), scaled(bytes.y, 1)};
}

// Stores sums [rows][outputs] with their bias.
__global__ void StoreSums(const float* sums, int64_t rows, int64_t outputs, const Output output) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < rows * outputs) output.StoreSum(i / outputs, i % outputs, sums[i]);
}

uint32_t AlignmentOf(const void* address, int64_t stride_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(address) | static_cast<uint64_t>(stride_bytes);
  return 1u << std::min(4, std::countr_zero(bits));
}

int64_t OutBytes(MatMulOut mode) {
  return mode == MatMulOut::kActivations ? 2 : 4;
}

template <class Byte>
Byte* Advance(Byte* address, int64_t bytes) {
  using Bytes = std::conditional_t<std::is_const_v<Byte>, const std::byte, std::byte>;
  return static_cast<Bytes*>(address) + bytes;
}

// `count` rows of x and the result, from `begin` on.
MatMulArgs RowsOf(MatMulArgs args, int64_t begin, int64_t count) {
  args.x = Advance(args.x, begin * args.x_stride * 2);
  args.out = Advance(args.out, begin * args.out_stride * OutBytes(args.mode));
  args.rows = static_cast<int32_t>(count);
  args.decode_rows = 0;
  return args;
}

// The outputs from `begin` on of which `weights`, kBF16, are the rows.
MatMulArgs OutputsOf(MatMulArgs args, int64_t begin, const Matrix& weights) {
  args.w = weights;
  args.out = Advance(args.out, begin * OutBytes(args.mode));
  if (args.bias != nullptr) args.bias += begin;
  return args;
}

// How many of `rows` fill `bytes`, in round numbers.
int64_t RowsIn(int64_t bytes, int64_t row_bytes, int64_t rows) {
  return std::min(rows, std::max<int64_t>(1, bytes / row_bytes / 128 * 128));
}

}  // namespace

Linear::Linear(DType weight_type) : weight_type_(weight_type) {
  EVERLONG_CHECK(weight_type == DType::kBF16 || weight_type == DType::kF8);
}

// Vectors of 16 bytes of w and the x that goes with them.
bool RowsAreAligned(const MatMulArgs& args) {
  const int64_t x_bytes = args.x_stride * 2;
  const int64_t w_bytes = args.w.cols * ByteSize(args.w.type);
  return AlignmentOf(args.x, x_bytes) == 16 && AlignmentOf(args.w.data, w_bytes) == 16;
}

void Linear::Multiply(const MatMulArgs& args, Context& context) {
  EVERLONG_CHECK(args.w.type == weight_type_);
  EVERLONG_CHECK(args.x_stride >= args.w.cols && args.out_stride >= args.w.rows);
  EVERLONG_CHECK(0 <= args.decode_rows && args.decode_rows <= args.rows);
  if (args.rows == 0 || args.w.rows == 0) return;
  if (!RowsAreAligned(args)) return MultiplyPlainly(args, context);
  const int32_t num_prompt = args.rows - args.decode_rows;
  if (args.decode_rows > 0) {
    const MatMulArgs decoded = RowsOf(args, 0, args.decode_rows);
    MultiplyDecoded({.product = &decoded}, {}, context);
  }
  if (num_prompt > 0) MultiplyPrompt(RowsOf(args, args.decode_rows, num_prompt), context);
}

void Linear::Multiply(const ProductCalls& calls, const Step& step, Context& context) {
  const MatMulArgs& args = *calls.product;
  const bool decoded = args.rows > 0 && args.decode_rows == args.rows && RowsAreAligned(args);
  ProductCalls at_once = {.product = &args};
  if (decoded && calls.norm != nullptr && TakesNorm(args, *calls.norm)) at_once.norm = calls.norm;
  if (decoded && calls.gate != nullptr && TakesGate(*calls.gate)) at_once.gate = calls.gate;
  if (calls.norm != at_once.norm) RmsNorm(*calls.norm, step, context);
  if (decoded) {
    MultiplyDecoded(at_once, step, context);
  } else {
    Multiply(args, context);
  }
  if (calls.gate != at_once.gate) GatedActivation(*calls.gate, context);
}

// The scratch memory: cuBLASLt's workspace, sums and widened weights, each where it is needed.
void Linear::MultiplyPrompt(const MatMulArgs& args, Context& context) {
  const Matrix& w = args.w;
  const bool widens = w.type == DType::kF8;
  const int64_t slab = widens ? RowsIn(kWideBytes, w.cols * 2, w.rows) : w.rows;
  const int64_t chunk = RowsIn(kSumBytes, slab * 4, args.rows);
  const int64_t sum_bytes = args.bias == nullptr ? 0 : (chunk * slab * 4 + 255) / 256 * 256;
  const int64_t wide_bytes = widens ? slab * w.cols * 2 : 0;
  auto* scratch = context.scratch.Get<std::byte>(Scratch::kMatMul,
                                                 Gemm::kWorkspaceBytes + sum_bytes + wide_bytes);
  if (!widens) return MultiplyWide(args, scratch, context);
  std::byte* wide = scratch + Gemm::kWorkspaceBytes + sum_bytes;
  for (int64_t begin = 0; begin < w.rows; begin += slab) {
    const int64_t rows = std::min(slab, w.rows - begin);
    const int64_t eighths = rows * w.cols / 8;
    Widen<<<Blocks(eighths), kThreads, 0, context.stream>>>(
        static_cast<const uint2*>(Advance(w.data, begin * w.cols)), RowScales(w) + begin, w.cols,
        eighths, reinterpret_cast<uint4*>(wide));
    EVERLONG_CUDA_LAUNCHED("Widen");
    const Matrix widened = {.data = wide, .rows = rows, .cols = w.cols, .type = DType::kBF16};
    MultiplyWide(OutputsOf(args, begin, widened), scratch, context);
  }
}

void Linear::MultiplyWide(const MatMulArgs& args, std::byte* scratch, Context& context) {
  if (args.bias == nullptr) {
    if (!MultiplyByGemm(args, scratch, context)) MultiplyPlainly(args, context);
    return;
  }
  auto* sums = reinterpret_cast<float*>(scratch + Gemm::kWorkspaceBytes);
  const int64_t outputs = args.w.rows;
  const int64_t chunk = RowsIn(kSumBytes, outputs * 4, args.rows);
  for (int64_t begin = 0; begin < args.rows; begin += chunk) {
    const MatMulArgs rows = RowsOf(args, begin, std::min(chunk, args.rows - begin));
    MatMulArgs product = rows;
    product.bias = nullptr;
    product.out = sums;
    product.out_stride = outputs;
    product.mode = MatMulOut::kF32;
    if (!MultiplyByGemm(product, scratch, context)) return MultiplyPlainly(args, context);
    StoreSums<<<Blocks(rows.rows * outputs), kThreads, 0, context.stream>>>(
        sums, rows.rows, outputs, Output::Of(rows));
    EVERLONG_CUDA_LAUNCHED("StoreSums");
  }
}

bool Linear::MultiplyByGemm(const MatMulArgs& args, void* workspace, Context& context) {
  const GemmShape shape = {
      .outputs = args.w.rows,
      .inputs = args.w.cols,
      .x_stride = args.x_stride,
      .out_stride = args.out_stride,
      .out_alignment = AlignmentOf(args.out, args.out_stride * OutBytes(args.mode)),
      .mode = args.mode};
  return gemm_.Multiply(shape, args.w.data, args.x, args.out, args.rows, workspace, context.stream);
}

std::shared_ptr<Linear> MakeLinear(DType weight_type) {
  return std::make_shared<Linear>(weight_type);
}

Matrix LoadMatrix(Linear& linear, std::span<const HostMatrix> parts, Context& /*context*/) {
  return linear.Load(parts);
}

void MatMul(Linear& linear, const MatMulArgs& args, Context& context) {
  linear.Multiply(args, context);
}

void MatMul(Linear& linear, const ProductCalls& calls, const Step& step, Context& context) {
  linear.Multiply(calls, step, context);
}

}  // namespace everlong::cuda
