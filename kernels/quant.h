// Quantised weights as GGUF lays them out (the block formats of ggml-common.h in ggml), read one
// block at a time, and the definition of their values. Blocks may stand at any byte.
//
// A weight is scale * (code - offset) + minimum, with one scale and minimum for 32 (kQ6K: 16)
// inputs. Scale, minimum and the product are exact in f32, so that a weight is rounded once. In a K
// type a scale is the product of the block's and a small integer, and a minimum likewise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace everlong {

inline constexpr int64_t kMaxBlockElements = 256;

// What is subtracted from the codes of types without minimums.
constexpr int CodeOffset(DType type) {
  switch (type) {
    case DType::kQ8_0:
      return 128;
    case DType::kQ4_0:
      return 8;
    case DType::kQ5_0:
      return 16;
    case DType::kQ6K:
      return 32;
    default:
      return 0;
  }
}

// Inputs that share a scale.
constexpr int64_t ScaledElements(DType type) {
  return type == DType::kQ6K ? 16 : 32;
}

// Writes the codes of a block, from 0 up, in the order of its elements.
void ReadCodes(DType type, const std::byte* block, uint8_t* codes);

struct BlockScales {
  uint16_t scale = 0;    // f16
  uint16_t minimum = 0;  // f16; of a K type what is subtracted
  // K types: the factors of each ScaledElements() in turn. kQ6K's scales are signed.
  uint8_t scale_factors[16] = {};
  uint8_t minimum_factors[8] = {};
};
BlockScales ReadScales(DType type, const std::byte* block);

// Writes the `cols` values of a row of any type to `out`.
void DequantizeRow(DType type, const void* row, int64_t cols, float* out);

}  // namespace everlong
