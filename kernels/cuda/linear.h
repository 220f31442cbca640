// Weight matrices on the device and their products.
//
// A matrix lies row after row, without gaps, from an address divisible by 256: kBF16, or kF8 and
// then, from RowScalesOffset on, a factor (f32) for each row. The factors are powers of two, the
// smallest that bring a row's elements into the range of E4M3, so that an element times its factor
// is exact in bf16.
//
// Products of decoded rows are bound by reading weights (decode_linear.cu); those of other rows are
// cuBLASLt's. Where rows are not aligned to 16 bytes a plain kernel serves both.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/memory.h"
#include "kernels/kernels.h"

namespace everlong::cuda {

constexpr int64_t RowScalesOffset(const Matrix& w) {
  constexpr int64_t kAlignment = 256;
  return (w.rows * w.cols * ByteSize(w.type) + kAlignment - 1) / kAlignment * kAlignment;
}
// Null for kBF16.
inline const float* RowScales(const Matrix& w) {
  if (w.type != DType::kF8) return nullptr;
  return reinterpret_cast<const float*>(static_cast<const std::byte*>(w.data) + RowScalesOffset(w));
}

// A product and the calls around it: the norm that makes its x and the activation that takes its
// result, where they are not null.
struct ProductCalls {
  const MatMulArgs* product = nullptr;
  const RmsNormArgs* norm = nullptr;
  const GatedActivationArgs* gate = nullptr;
};

class Linear {
 public:
  // kBF16 or kF8.
  explicit Linear(DType weight_type);

  Matrix Load(std::span<const HostMatrix> parts);
  void Multiply(const MatMulArgs& args, Context& context);
  void Multiply(const ProductCalls& calls, const Step& step, Context& context);

 private:
  // Products of rows that are not decoded, and of those with kBF16 weights. All rows of x and w are
  // aligned.
  void MultiplyPrompt(const MatMulArgs& args, Context& context);
  void MultiplyWide(const MatMulArgs& args, std::byte* scratch, Context& context);
  // Without bias. False where cuBLASLt has no algorithm.
  bool MultiplyByGemm(const MatMulArgs& args, void* workspace, Context& context);

  DType weight_type_;
  Gemm gemm_;
  std::vector<DeviceMemory> matrices_;
  PinnedMemory staging_;
  int64_t staging_bytes_ = 0;
};

// Whether MultiplyDecoded and cuBLASLt can read the rows of x and w. No matter of how many there
// are.
bool RowsAreAligned(const MatMulArgs& args);

// Whether a product of decoded rows takes along a norm that makes its x.
bool TakesNorm(const MatMulArgs& args, const RmsNormArgs& norm);
// Whether it takes along an activation that takes its result.
bool TakesGate(const GatedActivationArgs& gate);

// All of the rows, which are aligned, as decoded ones, by one kernel that takes along norm and
// gate.
void MultiplyDecoded(const ProductCalls& calls, const Step& step, Context& context);

// The calls, in as few kernels as serve; results are those of one after the other.
void MatMul(Linear& linear, const ProductCalls& calls, const Step& step, Context& context);

}  // namespace everlong::cuda
