#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/panel.h"
#include "kernels/cpu/quant_panel.h"
#include "kernels/dtype.h"

namespace everlong::cpu {
namespace {

constexpr int64_t kChunk = 64;  // inputs: a panel's share of them stays in the L1 cache

// Where the rows of a panel's columns begin; null past the last.
std::array<const std::byte*, kPanelColumns> PanelRows(std::span<const HostMatrix> parts,
                                                      int64_t panel) {
  std::array<const std::byte*, kPanelColumns> rows = {};
  for (int64_t column = 0; column < kPanelColumns; ++column) {
    int64_t index = panel * kPanelColumns + column;
    auto part = parts.begin();
    while (part != parts.end() && index >= part->rows) index -= (part++)->rows;
    if (part == parts.end()) break;
    rows[column] =
        static_cast<const std::byte*>(part->data) + index * RowBytes(part->type, part->cols);
  }
  return rows;
}

template <class Element>
void PackPanel(DType type, int64_t cols, std::span<const std::byte* const, kPanelColumns> rows,
               Element* out) {
  constexpr int64_t kSize = sizeof(Element);
  for (int64_t begin = 0; begin < cols; begin += kChunk) {
    const int64_t end = std::min(cols, begin + kChunk);
    for (int64_t column = 0; column < kPanelColumns && rows[column] != nullptr; ++column) {
      Element* to = out + PositionInPanel(type, column);
      for (int64_t k = begin; k < end; ++k) {
        // A checkpoint may place tensors at any byte.
        std::memcpy(&to[k * kPanelColumns], rows[column] + k * kSize, kSize);
      }
    }
  }
}

template <class Element, class Convert>
void EmbedRow(const Matrix& table, int64_t row, float* out, Convert convert) {
  const int64_t panel = row / kPanelColumns;
  const Element* from = static_cast<const Element*>(table.data) +
                        panel * table.cols * kPanelColumns +
                        PositionInPanel(table.type, row % kPanelColumns);
  for (int64_t k = 0; k < table.cols; ++k) out[k] = convert(from[k * kPanelColumns]);
}

int64_t PanelBytes(int64_t cols, DType type) {
  return IsQuantized(type) ? QuantPanelOf(type).PanelBytes(cols)
                           : kPanelColumns * cols * ByteSize(type);
}

void EmbedQuantized(const Matrix& table, int64_t row, float* out) {
  const auto* panel = static_cast<const std::byte*>(table.data) +
                      row / kPanelColumns * PanelBytes(table.cols, table.type);
  ReadQuantColumn(table.type, table.cols, panel, row % kPanelColumns, out);
}

}  // namespace

int64_t PackedBytes(int64_t rows, int64_t cols, DType type) {
  return NumPanels(rows) * PanelBytes(cols, type);
}

void PackMatrix(std::span<const HostMatrix> parts, void* packed, ThreadPool& pool) {
  EVERLONG_CHECK(!parts.empty());
  const int64_t cols = parts.front().cols;
  const DType type = parts.front().type;
  int64_t rows = 0;
  for (const HostMatrix& part : parts) {
    EVERLONG_CHECK(part.cols == cols && part.type == type);
    rows += part.rows;
  }
  EVERLONG_CHECK(cols % BlockOf(type).elements == 0);
  pool.Run(NumPanels(rows), [&](int64_t panel, int) {
    const auto columns = PanelRows(parts, panel);
    std::byte* to = static_cast<std::byte*>(packed) + panel * PanelBytes(cols, type);
    if (IsQuantized(type)) {
      PackQuantPanel(type, cols, columns.data(), to);
    } else if (type == DType::kF32) {
      PackPanel(type, cols, columns, reinterpret_cast<uint32_t*>(to));
    } else {
      PackPanel(type, cols, columns, reinterpret_cast<uint16_t*>(to));
    }
  });
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
        return EmbedQuantized(table, tokens[t], out);
    }
  });
}

}  // namespace everlong::cpu
