// Sines and cosines of positions, as sums of three parts. A position is
//   (high << 16) + (page << 6) + offset
// with high < 1024, page < 1024 and offset < 64; its turn is the product of the three parts' turns.
// Tables are made in double on the host, so that no position is too far for f32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/args.h"
#include "kernels/cuda/memory.h"

namespace everlong::cuda {

// (cos, sin) by dimension pair; device. `scale` is not in the tables.
struct RopeTable {
  const float2* high = nullptr;    // [1024][head_dim / 2]
  const float2* page = nullptr;    // [1024][head_dim / 2]
  const float2* offset = nullptr;  // [64][head_dim / 2]
  float scale = 1.0f;
};

// The tables of every rotary embedding that was asked for, by its frequencies, made when it first
// is.
class RopeTables {
 public:
  // The same embedding with frequencies that stay: equal ones are at one address, others never.
  Rope Keep(const Rope& rope, int32_t head_dim);
  RopeTable Get(const Rope& rope, int32_t head_dim);

 private:
  struct Table {
    std::vector<float> inv_freq;  // [head_dim / 2]
    DeviceMemory turns;           // null until Get
  };
  Table& Find(const Rope& rope, int32_t head_dim);

  std::vector<Table> tables_;
};

}  // namespace everlong::cuda
