// What every launch is given besides its arguments.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda {

struct Context {
  cudaStream_t stream = nullptr;
  int num_sms = 0;
  int architecture = 0;  // 80, 89, 90
  Scratch scratch;
  RopeTables ropes;
};

}  // namespace everlong::cuda
