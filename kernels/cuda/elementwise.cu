// Operations on rows: embedding, norm and gated activation. Elements go in vectors where the rows'
// widths allow it.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/linear-inl.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/row_math.cuh"

namespace everlong::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxThreads = 1024;

template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T at[kCount];
};

// Threads of a CTA for a row of `vectors`.
int ThreadsFor(int64_t vectors) {
  return static_cast<int>(std::min<int64_t>(kMaxThreads, (vectors + 31) / 32 * 32));
}

// One CTA per token.
template <class W, int kCount>
__global__ void EmbedTokens(const W* table, const float* scales, const int32_t* tokens,
                            int64_t width, float* out) {
  LetNextStart();
  const int64_t token = tokens[blockIdx.x];
  const float scale = scales == nullptr ? 1.0f : scales[token];
  const auto* from = reinterpret_cast<const Vector<W, kCount>*>(table + token * width);
  auto* to = reinterpret_cast<Vector<float, kCount>*>(out + blockIdx.x * width);
  for (int64_t i = threadIdx.x; i < width / kCount; i += blockDim.x) {
    const Vector<W, kCount> in = from[i];
    Vector<float, kCount> values;
#pragma unroll
    for (int j = 0; j < kCount; ++j) values.at[j] = static_cast<float>(in.at[j]) * scale;
    to[i] = values;
  }
}

// Brings the line of an address into the cache of the device.
__device__ void Prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// One CTA per row, which it reads twice, the second time from its cache.
template <int kCount>
__global__ void __launch_bounds__(kNormThreads)
    NormalizeRows(const float* x, const float* weight, const int32_t* source_rows, int64_t width,
                  float eps, BF16* out) {
  for (int64_t i = threadIdx.x * 32; i < width; i += kNormThreads * 32) Prefetch(weight + i);
  LetNextStart();
  WaitForPrevious();
  const int64_t row = source_rows == nullptr ? blockIdx.x : source_rows[blockIdx.x];
  const auto* from = reinterpret_cast<const Vector<float, kCount>*>(x + row * width);
  const auto* weights = reinterpret_cast<const Vector<float, kCount>*>(weight);
  auto* to = reinterpret_cast<Vector<BF16, kCount>*>(out + blockIdx.x * width);
  float squares = 0.0f;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < width / kCount; i += kNormThreads) {
    const Vector<float, kCount> in = from[i];
#pragma unroll
    for (int j = 0; j < kCount; ++j) squares += in.at[j] * in.at[j];
  }
  const float factor = NormFactor(squares, width, eps);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < width / kCount; i += kNormThreads) {
    const Vector<float, kCount> in = from[i];
    const Vector<float, kCount> w = weights[i];
    Vector<BF16, kCount> values;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values.at[j] = Normalized(in.at[j], factor, w.at[j]);
    }
    to[i] = values;
  }
}

template <int kCount>
__global__ void ActivateGated(const BF16* gate_up, int64_t rows, int64_t width, BF16* out) {
  LetNextStart();
  WaitForPrevious();
  const int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * kCount;
  if (i >= rows * width) return;
  const BF16* from = gate_up + i / width * 2 * width + i % width;
  const auto gates = *reinterpret_cast<const Vector<BF16, kCount>*>(from);
  const auto ups = *reinterpret_cast<const Vector<BF16, kCount>*>(from + width);
  Vector<BF16, kCount> values;
#pragma unroll
  for (int j = 0; j < kCount; ++j) values.at[j] = ActivateGate(gates.at[j], ups.at[j]);
  *reinterpret_cast<Vector<BF16, kCount>*>(out + i) = values;
}

// Whether `bytes` may be read at once from each address.
template <class... Address>
bool AreAligned(size_t bytes, const Address*... addresses) {
  return ((reinterpret_cast<uintptr_t>(addresses) % bytes == 0) && ...);
}

template <class W>
void Embed(const EmbedArgs& args, const Step& step, Context& context) {
  const Matrix& table = args.table;
  const auto* elements = static_cast<const W*>(table.data);
  const bool vectors = table.cols % 4 == 0 && AreAligned(16, table.data, args.out);
  const int threads = ThreadsFor(vectors ? table.cols / 4 : table.cols);
  const auto kernel = vectors ? EmbedTokens<W, 4> : EmbedTokens<W, 1>;
  kernel<<<static_cast<uint32_t>(step.num_tokens), threads, 0, context.stream>>>(
      elements, RowScales(table), step.tokens, table.cols, args.out);
  EVERLONG_CUDA_LAUNCHED("EmbedTokens");
}

}  // namespace

void Embed(const EmbedArgs& args, const Step& step, Context& context) {
  if (step.num_tokens == 0) return;
  if (args.table.type == DType::kF8) {
    Embed<F8>(args, step, context);
  } else {
    EVERLONG_CHECK(args.table.type == DType::kBF16);
    Embed<BF16>(args, step, context);
  }
}

void RmsNorm(const RmsNormArgs& args, const Step& step, Context& context) {
  if (args.rows == 0) return;
  const bool gathers = args.first_output >= 0;
  EVERLONG_CHECK(!gathers || args.first_output + args.rows <= step.num_outputs);
  const int32_t* source_rows = gathers ? step.output_rows + args.first_output : nullptr;
  const bool vectors = args.width % 4 == 0 && AreAligned(16, args.x, args.weight, args.out);
  const auto kernel = vectors ? NormalizeRows<4> : NormalizeRows<1>;
  LaunchDependent(context, kernel, dim3(static_cast<uint32_t>(args.rows)), kNormThreads, 0, args.x,
                  args.weight, source_rows, args.width, args.eps, static_cast<BF16*>(args.out));
}

void GatedActivation(const GatedActivationArgs& args, Context& context) {
  const int64_t count = int64_t{args.rows} * args.width;
  if (count == 0) return;
  const bool vectors = args.width % 8 == 0 && AreAligned(16, args.gate_up, args.out);
  const int64_t per_block = kThreads * (vectors ? 8 : 1);
  const auto kernel = vectors ? ActivateGated<8> : ActivateGated<1>;
  const auto blocks = static_cast<uint32_t>((count + per_block - 1) / per_block);
  LaunchDependent(context, kernel, dim3(blocks), kThreads, 0,
                  static_cast<const BF16*>(args.gate_up), int64_t{args.rows}, args.width,
                  static_cast<BF16*>(args.out));
}

}  // namespace everlong::cuda
