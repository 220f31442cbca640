// Products of bf16 matrices by cuBLASLt. A shape has one algorithm for all numbers of rows, and
// none that splits a sum, so that a row of a result does not depend on the rows beside it.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/args.h"
#include "kernels/cuda/context.h"

namespace everlong::cuda {

// out[r][n] = sum_k x[r][k] * w[n][k]; w lies row after row, at an address divisible by 256, and
// rows of x and w begin at addresses divisible by 16. kActivations rounds to bf16.
struct GemmShape {
  int64_t outputs = 0;
  int64_t inputs = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  uint32_t out_alignment = 0;  // of out's rows, in bytes
  MatMulOut mode = MatMulOut::kActivations;

  auto operator<=>(const GemmShape&) const = default;
};

class Gemm {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  Gemm();

  // False, and nothing is done, where cuBLASLt has no algorithm for the shape. `workspace`:
  // kWorkspaceBytes.
  bool Multiply(const GemmShape& shape, const void* w, const void* x, void* out, int64_t rows,
                void* workspace, cudaStream_t stream);

 private:
  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
    void operator()(cublasLtMatmulDesc_t product) const { cublasLtMatmulDescDestroy(product); }
    void operator()(cublasLtMatrixLayout_t layout) const { cublasLtMatrixLayoutDestroy(layout); }
    void operator()(cublasLtMatmulPreference_t preference) const {
      cublasLtMatmulPreferenceDestroy(preference);
    }
  };
  template <class T>
  using Owned = std::unique_ptr<T, Destroy>;
  using Layout = Owned<cublasLtMatrixLayoutOpaque_t>;

  struct Plan {
    Owned<cublasLtMatmulDescOpaque_t> product;
    Layout w;
    Layout x;
    Layout out;
    cublasLtMatmulAlgo_t algorithm;
    bool exists = false;
  };

  static Layout MakeLayout(cudaDataType_t type, int64_t rows, int64_t cols, int64_t stride);
  Plan MakePlan(const GemmShape& shape) const;
  void ChooseAlgorithm(const GemmShape& shape, Plan& plan) const;

  Owned<cublasLtContext> handle_;
  std::map<GemmShape, Plan> plans_;
};

}  // namespace everlong::cuda
