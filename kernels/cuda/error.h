// Calls of CUDA's libraries, checked. Where memory does not suffice, which any call may find (the
// first launch of a kernel loads its code), std::bad_alloc is thrown and the next call starts anew;
// any other failure throws DeviceError with the call and the reason.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <new>
#include <string>

#include "kernels/kernels.h"

namespace everlong::cuda {

inline void Check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it would be reported again by the next launch
    throw std::bad_alloc();
  }
  throw DeviceError(std::string(call) + ": " + cudaGetErrorString(status));
}

inline void Check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw std::bad_alloc();
  throw DeviceError(std::string(call) + ": " + cublasLtGetStatusString(status));
}

// Lets launches of `kernel` have so many bytes of dynamic shared memory. True, for the static
// variable that remembers it: one whose initialisation throws is initialised again.
template <class Kernel>
bool AllowSharedMemory(Kernel* kernel, int bytes) {
  Check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "cudaFuncSetAttribute");
  return true;
}

// Of dynamic shared memory, that a CTA of the current device may have beside what kernels declare.
inline int MaxSharedBytes() {
  static const int bytes = [] {
    int device = 0;
    int value = 0;
    Check(cudaGetDevice(&device), "cudaGetDevice");
    Check(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "cudaDeviceGetAttribute");
    return value - 1024;
  }();
  return bytes;
}

}  // namespace everlong::cuda

#define EVERLONG_CUDA(call) ::everlong::cuda::Check((call), #call)
// After a kernel's launch.
#define EVERLONG_CUDA_LAUNCHED(kernel) ::everlong::cuda::Check(cudaGetLastError(), kernel)
