// Products with packed quantised matrices, in integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace everlong::cpu {

// An activation is scale * (16384 a + 128 b + c): a power of two times three digits of at most 64
// in magnitude. The sum is less than 2^20, and not less than 2^19 for the largest of those that
// share a scale. So an activation keeps 19 bits at least of what the largest has, and two products
// of a digit with a code of 8 bits fit into 16 bits.
inline constexpr int kDigits = 3;
inline constexpr int kDigitBits = 7;

// What inputs have in common whose weights share a scale.
struct RowPart {
  int32_t start[kDigits];  // - code offset * sum of the digits
  float scale;
  float sum;  // of the activations
};

// Rows of activations as digits, for weights of one type.
struct DigitRows {
  int8_t* digits = nullptr;  // [rows][kDigits][cols]
  RowPart* parts = nullptr;  // [rows][cols / ScaledElements(type)]
};

// What one task of a product computes: rows of x by panels of w.
struct MatMulBlock {
  int64_t row_begin;
  int64_t row_end;
  int64_t panel_begin;
  int64_t panel_end;
};

// Writes row `row` of x to `rows`.
void SplitRow(const MatMulArgs& args, int64_t row, const DigitRows& rows);

// A row's rounding does not depend on how many rows there are.
void MultiplyQuantized(const MatMulArgs& args, const DigitRows& rows, const MatMulBlock& block);

}  // namespace everlong::cpu
