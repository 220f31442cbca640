#include "kernels/cpu/quant_panel.h"

#include <cstring>

#include "kernels/dtype.h"

namespace everlong::cpu {
namespace {

template <class Element>
void Put(std::byte* array, int64_t index, Element value) {
  std::memcpy(array + index * static_cast<int64_t>(sizeof(Element)), &value, sizeof(Element));
}

template <class Element>
Element Get(const std::byte* array, int64_t index) {
  Element value;
  std::memcpy(&value, array + index * static_cast<int64_t>(sizeof(Element)), sizeof(Element));
  return value;
}

// The words of one unit's codes in one column.
template <DType kType>
void PackCodes(const uint8_t* codes, std::byte* words, int64_t column) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  uint32_t packed[8] = {};
  for (int i = 0; i < kUnitInputs; ++i) {
    const CodeField low = kPanel.Low(i);
    packed[low.word] |= (codes[i] & ((1u << kPanel.low_bits()) - 1)) << low.shift;
    if constexpr (kPanel.high_bits() > 0) {
      const CodeField high = kPanel.High(i);
      packed[high.word] |= uint32_t{codes[i]} >> 4 << high.shift;
    }
  }
  for (int word = 0; word < kPanel.code_bits; ++word) {
    Put(words, word * kPanelColumns + column, packed[word]);
  }
}

template <DType kType>
void PackBlock(const std::byte* block, std::byte* to, int64_t column) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  constexpr int64_t kFactors = kUnitInputs / kPanel.scaled_inputs;
  const BlockScales scales = ReadScales(kType, block);
  uint8_t codes[kMaxBlockElements];
  ReadCodes(kType, block, codes);
  Put(to, column, scales.scale);
  if (kPanel.has_minimums) Put(to, kPanelColumns + column, scales.minimum);
  to += kPanel.HeaderBytes();
  for (int64_t unit = 0; unit < kPanel.block_inputs / kUnitInputs; ++unit) {
    if (kPanel.has_factors) {
      for (int64_t i = 0; i < kFactors; ++i) {
        Put(to, i * kPanelColumns + column, scales.scale_factors[unit * kFactors + i]);
      }
      if (kPanel.has_minimums) {
        Put(to, kFactors * kPanelColumns + column, scales.minimum_factors[unit]);
      }
    }
    PackCodes<kType>(codes + unit * kUnitInputs, to + kPanel.FactorBytes(), column);
    to += kPanel.UnitBytes();
  }
}

template <DType kType>
void PackPanel(int64_t cols, const std::byte* const* rows, std::byte* panel) {
  const BlockShape shape = BlockOf(kType);
  for (int64_t i = 0; i < cols / shape.elements; ++i) {
    for (int64_t column = 0; column < kPanelColumns && rows[column] != nullptr; ++column) {
      PackBlock<kType>(rows[column] + i * shape.bytes, panel, column);
    }
    panel += QuantPanelOf(kType).BlockBytes();
  }
}

// The weights of one column in `unit` of `block`; `part` counts the unit's inputs that share a
// scale.
template <DType kType>
void ReadPart(const std::byte* block, const std::byte* unit, int64_t part, int64_t column,
              float* out) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  float scale = F16ToF32(Get<uint16_t>(block, column));
  float minimum = kPanel.has_minimums ? F16ToF32(Get<uint16_t>(block, kPanelColumns + column)) : 0;
  if (kPanel.has_factors && kPanel.has_minimums) {
    scale *= Get<uint8_t>(unit, column);
    minimum *= -static_cast<float>(Get<uint8_t>(unit, kPanelColumns + column));
  } else if (kPanel.has_factors) {
    scale *= Get<int8_t>(unit, part * kPanelColumns + column);
  }
  const auto word = [&](int i) {
    return Get<uint32_t>(unit + kPanel.FactorBytes(), i * kPanelColumns + column);
  };
  const int first = static_cast<int>(part * kPanel.scaled_inputs);
  for (int i = first; i < first + kPanel.scaled_inputs; ++i) {
    const CodeField low = kPanel.Low(i);
    uint32_t code = word(low.word) >> low.shift & ((1u << kPanel.low_bits()) - 1);
    if constexpr (kPanel.high_bits() > 0) {
      const CodeField high = kPanel.High(i);
      code |= (word(high.word) >> high.shift & ((1u << kPanel.high_bits()) - 1)) << 4;
    }
    *out = scale * static_cast<float>(static_cast<int>(code) - CodeOffset(kType));
    if (kPanel.has_minimums) *out += minimum;
    ++out;
  }
}

template <DType kType>
void ReadColumn(int64_t cols, const std::byte* panel, int64_t column, float* out) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  const float* end = out + cols;
  while (out < end) {
    const std::byte* unit = panel + kPanel.HeaderBytes();
    for (int64_t i = 0; i < kPanel.block_inputs / kUnitInputs; ++i) {
      for (int64_t part = 0; part < kUnitInputs / kPanel.scaled_inputs; ++part) {
        ReadPart<kType>(panel, unit, part, column, out);
        out += kPanel.scaled_inputs;
      }
      unit += kPanel.UnitBytes();
    }
    panel = unit;
  }
}

}  // namespace

void PackQuantPanel(DType type, int64_t cols, const std::byte* const* rows, std::byte* panel) {
  VisitQuantType(type, [&](auto t) { PackPanel<t()>(cols, rows, panel); });
}

void ReadQuantColumn(DType type, int64_t cols, const std::byte* panel, int64_t column, float* out) {
  VisitQuantType(type, [&](auto t) { ReadColumn<t()>(cols, panel, column, out); });
}

}  // namespace everlong::cpu
