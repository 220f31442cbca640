// How matrices are packed: panels of 32 columns (outputs), in each the 32 weights of input 0, then
// those of input 1, and so on: [ceil(rows / 32)][cols][32], the last panel filled up with zeros.
// One copy of the weights, in their own type, read in order by one row or by many.
#pragma once

#include <cstdint>

#include "kernels/args.h"

namespace everlong::cpu {

inline constexpr int64_t kPanelColumns = 32;

constexpr int64_t NumPanels(int64_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns;
}

// bf16 panels interleave columns 0..15 with columns 16..31.
constexpr int64_t PairedPosition(int64_t column) {
  return column % 16 * 2 + column / 16;
}

constexpr int64_t PositionInPanel(DType type, int64_t column) {
  return type == DType::kBF16 ? PairedPosition(column) : column;
}

}  // namespace everlong::cpu
