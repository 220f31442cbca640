// Kernels that start while the kernel before them on the stream still runs (CUDA programming guide,
// "Programmatic Dependent Launch"): what does not depend on it, such as reading weights, overlaps
// its end, and no launch waits for it. From sm_90 on; elsewhere a launch is an ordinary one.
//
// A kernel launched by LaunchDependent must have all its threads call WaitForPrevious before they
// read what kernels of the step wrote, write anything, or return. What it reads afterwards must not
// pass through the cache of constants (__ldg): lines there may be older than the wait.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/context.h"
#include "kernels/cuda/error.h"

namespace everlong::cuda {

// Lets the next kernel start, if it was launched by LaunchDependent, once all CTAs got here.
__device__ inline void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before this one have ended and all that they wrote is seen.
__device__ inline void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void LaunchDependent(const Context& context, void (*kernel)(Parameters...), dim3 grid, int threads,
                     int shared_bytes, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<uint32_t>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = context.architecture >= 90 ? 1 : 0;
  EVERLONG_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace everlong::cuda
