#include "kernels/cuda/gemm.h"

#include <span>

#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

// Of a chunk of a prompt; algorithms are chosen for so many.
constexpr int64_t kTypicalRows = 2048;

template <class T>
void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         T value) {
  EVERLONG_CUDA(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

void SetRows(cublasLtMatrixLayout_t layout, int64_t rows) {
  const auto cols = static_cast<uint64_t>(rows);  // cuBLASLt's matrices go by columns
  EVERLONG_CUDA(
      cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof(cols)));
}

bool SplitsSums(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t splits = 0;
  EVERLONG_CUDA(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                     &splits, sizeof(splits), nullptr));
  return splits > 1;
}

}  // namespace

Gemm::Gemm() {
  cublasLtHandle_t handle = nullptr;
  EVERLONG_CUDA(cublasLtCreate(&handle));
  handle_.reset(handle);
}

Gemm::Layout Gemm::MakeLayout(cudaDataType_t type, int64_t rows, int64_t cols, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  EVERLONG_CUDA(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(cols),
                                           static_cast<uint64_t>(rows), stride));
  return Layout(layout);
}

// By columns, out = w^T x with w of [inputs][outputs].
Gemm::Plan Gemm::MakePlan(const GemmShape& shape) const {
  Plan plan;
  cublasLtMatmulDesc_t product = nullptr;
  EVERLONG_CUDA(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.product.reset(product);
  const cublasOperation_t transpose = CUBLAS_OP_T;
  EVERLONG_CUDA(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                               sizeof(transpose)));
  const auto out_type = shape.mode == MatMulOut::kActivations ? CUDA_R_16BF : CUDA_R_32F;
  plan.w = MakeLayout(CUDA_R_16BF, shape.outputs, shape.inputs, shape.inputs);
  plan.x = MakeLayout(CUDA_R_16BF, kTypicalRows, shape.inputs, shape.x_stride);
  plan.out = MakeLayout(out_type, kTypicalRows, shape.outputs, shape.out_stride);
  ChooseAlgorithm(shape, plan);
  return plan;
}

void Gemm::ChooseAlgorithm(const GemmShape& shape, Plan& plan) const {
  cublasLtMatmulPreference_t made = nullptr;
  EVERLONG_CUDA(cublasLtMatmulPreferenceCreate(&made));
  const Owned<cublasLtMatmulPreferenceOpaque_t> preference(made);
  Set<uint64_t>(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  Set<uint32_t>(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_NONE);
  Set<uint32_t>(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 16);
  Set<uint32_t>(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 16);
  Set<uint32_t>(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out_alignment);
  Set<uint32_t>(made, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out_alignment);
  cublasLtMatmulHeuristicResult_t results[8];
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), plan.product.get(), plan.w.get(), plan.x.get(), plan.out.get(), plan.out.get(),
      made, static_cast<int>(std::size(results)), results, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return;
  Check(status, "cublasLtMatmulAlgoGetHeuristic");
  for (const auto& result : std::span(results, static_cast<size_t>(count))) {
    if (result.state != CUBLAS_STATUS_SUCCESS || SplitsSums(result.algo)) continue;
    plan.algorithm = result.algo;
    plan.exists = true;
    return;
  }
}

bool Gemm::Multiply(const GemmShape& shape, const void* w, const void* x, void* out, int64_t rows,
                    void* workspace, cudaStream_t stream) {
  auto found = plans_.find(shape);
  if (found == plans_.end()) found = plans_.emplace(shape, MakePlan(shape)).first;
  const Plan& plan = found->second;
  if (!plan.exists) return false;
  SetRows(plan.x.get(), rows);
  SetRows(plan.out.get(), rows);
  const float one = 1.0f;
  const float before = shape.mode == MatMulOut::kAddF32 ? 1.0f : 0.0f;
  EVERLONG_CUDA(cublasLtMatmul(handle_.get(), plan.product.get(), &one, w, plan.w.get(), x,
                               plan.x.get(), &before, out, plan.out.get(), out, plan.out.get(),
                               &plan.algorithm, workspace, kWorkspaceBytes, stream));
  return true;
}

}  // namespace everlong::cuda
