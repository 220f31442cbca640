// Products with packed matrices.
#pragma once

#include <span>

#include "kernels/args.h"
#include "kernels/cpu/aligned_floats.h"
#include "kernels/cpu/quant_matmul.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace everlong::cpu {

// Bytes that PackMatrix fills.
int64_t PackedBytes(int64_t rows, int64_t cols, DType type);

// Stacks `parts`, of the same cols and type, into `packed`, which is zeroed.
void PackMatrix(std::span<const HostMatrix> parts, void* packed, ThreadPool& pool);

// out[t] = row tokens[t] of the packed table, as f32.
void Embed(const EmbedArgs& args, std::span<const int32_t> tokens, ThreadPool& pool);

class MatMul {
 public:
  void Run(const MatMulArgs& args, ThreadPool& pool);

 private:
  DigitRows SplitRows(const MatMulArgs& args, ThreadPool& pool);

  AlignedFloats digits_;
};

}  // namespace everlong::cpu
