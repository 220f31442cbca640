// Calls of CUDA's libraries, checked: a failure throws DeviceError with the call and the reason.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>

#include "kernels/kernels.h"

namespace everlong::cuda {

inline void Check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw DeviceError(std::string(call) + ": " + cudaGetErrorString(status));
}

inline void Check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string(call) + ": " + cublasLtGetStatusString(status));
}

}  // namespace everlong::cuda

#define EVERLONG_CUDA(call) ::everlong::cuda::Check((call), #call)
// After a kernel's launch.
#define EVERLONG_CUDA_LAUNCHED(kernel) ::everlong::cuda::Check(cudaGetLastError(), kernel)
