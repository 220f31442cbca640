#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/panel.h"
#include "kernels/dtype.h"

namespace everlong::cpu {
namespace {

constexpr int64_t kChunk = 64;  // inputs: a panel's share of them stays in the L1 cache

// Row `index` of the stacked parts.
template <class Element>
const Element* StackedRow(std::span<const HostMatrix> parts, int64_t index) {
  for (const HostMatrix& part : parts) {
    if (index < part.rows) return static_cast<const Element*>(part.data) + index * part.cols;
    index -= part.rows;
  }
  return nullptr;
}

template <class Element>
void PackPanel(std::span<const HostMatrix> parts, int64_t panel, Element* out) {
  const int64_t cols = parts.front().cols;
  const DType type = parts.front().type;
  for (int64_t begin = 0; begin < cols; begin += kChunk) {
    const int64_t end = std::min(cols, begin + kChunk);
    for (int64_t column = 0; column < kPanelColumns; ++column) {
      const auto* row = StackedRow<Element>(parts, panel * kPanelColumns + column);
      if (row == nullptr) break;
      Element* to = out + PositionInPanel(type, column);
      for (int64_t k = begin; k < end; ++k) {
        // A checkpoint may place tensors at any byte.
        std::memcpy(&to[k * kPanelColumns], &row[k], sizeof(Element));
      }
    }
  }
}

template <class Element>
void PackPanels(std::span<const HostMatrix> parts, int64_t rows, Element* packed,
                ThreadPool& pool) {
  const int64_t cols = parts.front().cols;
  pool.Run(NumPanels(rows), [&](int64_t panel, int) {
    PackPanel(parts, panel, packed + panel * cols * kPanelColumns);
  });
}

template <class Element, class Convert>
void EmbedRow(const Matrix& table, int64_t row, float* out, Convert convert) {
  const int64_t panel = row / kPanelColumns;
  const Element* from = static_cast<const Element*>(table.data) +
                        panel * table.cols * kPanelColumns +
                        PositionInPanel(table.type, row % kPanelColumns);
  for (int64_t k = 0; k < table.cols; ++k) out[k] = convert(from[k * kPanelColumns]);
}

}  // namespace

int64_t PackedBytes(int64_t rows, int64_t cols, DType type) {
  return NumPanels(rows) * kPanelColumns * cols * ByteSize(type);
}

void PackMatrix(std::span<const HostMatrix> parts, void* packed, ThreadPool& pool) {
  int64_t rows = 0;
  for (const HostMatrix& part : parts) {
    EVERLONG_CHECK(part.cols == parts.front().cols && part.type == parts.front().type);
    EVERLONG_CHECK(!IsQuantized(part.type));
    rows += part.rows;
  }
  if (parts.front().type == DType::kF32) {
    PackPanels(parts, rows, static_cast<uint32_t*>(packed), pool);
  } else {
    PackPanels(parts, rows, static_cast<uint16_t*>(packed), pool);
  }
}

void Embed(const EmbedArgs& args, std::span<const int32_t> tokens, ThreadPool& pool) {
  const Matrix& table = args.table;
  pool.Run(static_cast<int64_t>(tokens.size()), [&](int64_t t, int) {
    EVERLONG_CHECK(tokens[t] >= 0 && tokens[t] < table.rows);
    float* out = args.out + t * table.cols;
    switch (table.type) {
      case DType::kF32:
        return EmbedRow<float>(table, tokens[t], out, [](float value) { return value; });
      case DType::kF16:
        return EmbedRow<uint16_t>(table, tokens[t], out, F16ToF32);
      case DType::kBF16:
        return EmbedRow<uint16_t>(table, tokens[t], out, BF16ToF32);
      default:
        EVERLONG_CHECK(!IsQuantized(table.type));
    }
  });
}

}  // namespace everlong::cpu
