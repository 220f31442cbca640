// How quantised matrices are packed: panels of 32 columns as in panel.h, each a sequence of blocks
// of as many inputs as GGUF's. A block holds
//   scales (f16) [32], minimums (f16, where the type has them) [32],
// and for every 32 inputs
//   scale factors [32 / ScaledElements][32] and minimum factors [32] (bytes, K types only),
//   codes [words][32]: words of 32 bits, in each the bits of one column.
// Factors take whole bytes, 6 bits in GGUF; all else takes as many bytes as there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/check.h"
#include "kernels/cpu/panel.h"
#include "kernels/quant.h"

namespace everlong::cpu {

inline constexpr int64_t kUnitInputs = 32;  // inputs whose codes are packed together

// A few bits of a word.
struct CodeField {
  int word;
  int shift;
};

struct QuantPanel {
  int code_bits;
  bool has_minimums;
  bool has_factors;
  int64_t block_inputs;
  int64_t scaled_inputs;

  // Codes of 5 and 6 bits have their lower 4 in words of their own.
  constexpr int low_bits() const { return code_bits == 8 ? 8 : 4; }
  constexpr int high_bits() const { return code_bits - low_bits(); }

  constexpr int64_t HeaderBytes() const { return (has_minimums ? 4 : 2) * kPanelColumns; }
  constexpr int64_t FactorBytes() const {
    return has_factors ? (kUnitInputs / scaled_inputs + (has_minimums ? 1 : 0)) * kPanelColumns : 0;
  }
  constexpr int64_t UnitBytes() const {
    return FactorBytes() + kUnitInputs * code_bits / 8 * kPanelColumns;
  }
  constexpr int64_t BlockBytes() const {
    return HeaderBytes() + block_inputs / kUnitInputs * UnitBytes();
  }
  constexpr int64_t PanelBytes(int64_t cols) const { return cols / block_inputs * BlockBytes(); }

  // Where a unit's input (0..31) has the lower and the upper bits of its code, so that a mask, at
  // most one shift and for upper bits two more bring the codes of four inputs into a word's bytes.
  constexpr CodeField Low(int input) const {
    if (low_bits() == 8) return {input / 4, input % 4 * 8};
    return {input / 8, input % 4 * 8 + input / 4 % 2 * 4};
  }
  constexpr CodeField High(int input) const {
    const int fields = 8 / high_bits();  // of a byte, one for each four inputs in turn
    return {4 + input / 4 / fields, input % 4 * 8 + input / 4 % fields * high_bits()};
  }
};

constexpr QuantPanel QuantPanelOf(DType type) {
  const bool has_factors = BlockOf(type).elements > kUnitInputs;
  const bool has_minimums = CodeOffset(type) == 0;
  const bool five = type == DType::kQ5_0 || type == DType::kQ5_1 || type == DType::kQ5K;
  const int code_bits = type == DType::kQ8_0 ? 8 : type == DType::kQ6K ? 6 : five ? 5 : 4;
  return {code_bits, has_minimums, has_factors, BlockOf(type).elements, ScaledElements(type)};
}

// visit(std::integral_constant<DType, type>()), `type` being quantised.
template <class Visit>
void VisitQuantType(DType type, const Visit& visit) {
  switch (type) {
    case DType::kQ8_0:
      return visit(std::integral_constant<DType, DType::kQ8_0>());
    case DType::kQ4_0:
      return visit(std::integral_constant<DType, DType::kQ4_0>());
    case DType::kQ4_1:
      return visit(std::integral_constant<DType, DType::kQ4_1>());
    case DType::kQ5_0:
      return visit(std::integral_constant<DType, DType::kQ5_0>());
    case DType::kQ5_1:
      return visit(std::integral_constant<DType, DType::kQ5_1>());
    case DType::kQ4K:
      return visit(std::integral_constant<DType, DType::kQ4K>());
    case DType::kQ5K:
      return visit(std::integral_constant<DType, DType::kQ5K>());
    case DType::kQ6K:
      return visit(std::integral_constant<DType, DType::kQ6K>());
    default:
      EVERLONG_CHECK(IsQuantized(type));
  }
}

// Packs one panel; rows[n] is where the row of its column n begins, null past the last. The panel
// is zeroed.
void PackQuantPanel(DType type, int64_t cols, const std::byte* const* rows, std::byte* panel);

// Writes the `cols` weights of column `column` of a packed panel to `out`.
void ReadQuantColumn(DType type, int64_t cols, const std::byte* panel, int64_t column, float* out);

}  // namespace everlong::cpu
