#include "tests/kernels/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dtype.h"
#include "kernels/quant.h"

namespace everlong {
namespace {

// Bytes of a block before its scale; a minimum, where there is one, follows.
int64_t ScaleOffset(DType type) {
  return type == DType::kQ6K ? 208 : 0;
}
bool HasMinimum(DType type) {
  return CodeOffset(type) == 0;
}

// A row's scales are subnormal or zero, the largest, or of weights as they are, so that none hides
// behind larger ones; every fourth row mixes them.
uint16_t RandomScale(std::mt19937& random, int64_t row) {
  switch (row % 4 == 3 ? random() % 3 : row % 4) {
    case 0:
      return random() % 0x400;
    case 1:
      return random() % 2 == 0 ? 0x7BFF : 0xFBFF;
    default:
      return F32ToF16(std::normal_distribution<float>(0.0f, 0.02f)(random));
  }
}

Values Dequantize(DType type, const std::vector<std::byte>& bytes, int64_t rows, int64_t cols) {
  Values values(rows * cols);
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(type, bytes.data() + r * RowBytes(type, cols), cols, values.data() + r * cols);
  }
  return values;
}

}  // namespace

std::vector<DType> PlainTypes() {
  return {DType::kF32, DType::kF16, DType::kBF16};
}

std::vector<DType> QuantizedTypes() {
  return {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
          DType::kQ5_1, DType::kQ4K,  DType::kQ5K,  DType::kQ6K};
}

std::vector<DType> WeightTypes() {
  std::vector<DType> types = PlainTypes();
  for (const DType type : QuantizedTypes()) types.push_back(type);
  return types;
}

Values AsKept(DType weight_type, const Values& values, int64_t cols) {
  if (weight_type != DType::kF8) return RoundTo(weight_type, values);
  Values kept;
  for (auto row = values.begin(); row != values.end(); row += cols) {
    float most = 0.0f;
    for (int64_t i = 0; i < cols; ++i) most = std::max(most, std::abs(row[i]));
    int exponent = -126;
    while (std::ldexp(448.0f, exponent) < most) ++exponent;
    Values scaled(row, row + cols);
    for (float& value : scaled) value = std::ldexp(value, -exponent);
    for (const float code : RoundTo(DType::kF8, scaled)) kept.push_back(std::ldexp(code, exponent));
  }
  return kept;
}

std::vector<std::byte> RandomRows(std::mt19937& random, DType type, int64_t rows, int64_t cols) {
  if (!IsQuantized(type)) return Encode(type, RandomValues(random, rows * cols, type));
  std::vector<std::byte> bytes(rows * RowBytes(type, cols));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const int64_t row_blocks = cols / BlockOf(type).elements;
  for (int64_t block = 0; block < rows * row_blocks; ++block) {
    const int64_t row = block / row_blocks;
    const uint16_t halves[] = {RandomScale(random, row), RandomScale(random, row)};
    std::memcpy(&bytes[block * BlockOf(type).bytes + ScaleOffset(type)], halves,
                HasMinimum(type) ? 4 : 2);
  }
  return bytes;
}

Weights::Weights(std::mt19937& random, DType type, const std::vector<int64_t>& part_rows,
                 int64_t cols)
    : type(type), part_rows(part_rows), cols(cols) {
  for (const int64_t part : part_rows) rows += part;
  bytes = RandomRows(random, type, rows, cols);
  values = Dequantize(type, bytes, rows, cols);
  std::vector<std::byte> no_minimums = bytes;
  const auto block_bytes = static_cast<size_t>(BlockOf(type).bytes);
  for (size_t block = 0; IsQuantized(type) && HasMinimum(type) && block < bytes.size();
       block += block_bytes) {
    std::memset(&no_minimums[block + 2], 0, 2);
  }
  magnitudes = Dequantize(type, no_minimums, rows, cols);
  for (size_t i = 0; i < values.size(); ++i) {
    magnitudes[i] = std::abs(magnitudes[i]) + std::abs(values[i] - magnitudes[i]);
  }
}

Matrix Weights::LoadInto(Device& device) const {
  const int64_t row_bytes = RowBytes(type, cols);
  std::vector<std::vector<std::byte>> copies;
  std::vector<HostMatrix> parts;
  const std::byte* from = bytes.data();
  for (const int64_t part : part_rows) {
    copies.emplace_back(1);
    copies.back().insert(copies.back().end(), from, from + part * row_bytes);
    parts.push_back({copies.back().data() + 1, part, cols, type});
    from += part * row_bytes;
  }
  return device->LoadMatrix(parts);
}

}  // namespace everlong
