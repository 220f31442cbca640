#include "kernels/quant.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace everlong {
namespace {

// Where a block's parts are, by its layout: bytes from its begin; -1: it has none.
struct Layout {
  int scale;
  int minimum;
  int factors;
  int low;   // the codes, or their lower 4 bits
  int high;  // the bits above those
};

constexpr Layout LayoutOf(DType type) {
  switch (type) {
    case DType::kQ8_0:
    case DType::kQ4_0:
      return {.scale = 0, .minimum = -1, .factors = -1, .low = 2, .high = -1};
    case DType::kQ4_1:
      return {.scale = 0, .minimum = 2, .factors = -1, .low = 4, .high = -1};
    case DType::kQ5_0:
      return {.scale = 0, .minimum = -1, .factors = -1, .low = 6, .high = 2};
    case DType::kQ5_1:
      return {.scale = 0, .minimum = 2, .factors = -1, .low = 8, .high = 4};
    case DType::kQ4K:
      return {.scale = 0, .minimum = 2, .factors = 4, .low = 16, .high = -1};
    case DType::kQ5K:
      return {.scale = 0, .minimum = 2, .factors = 4, .low = 48, .high = 16};
    case DType::kQ6K:
      return {.scale = 208, .minimum = -1, .factors = 192, .low = 0, .high = 128};
    default:
      return {};
  }
}

uint16_t ReadHalf(const std::byte* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof(half));
  return half;
}

// `count` bytes hold the codes of as many elements in their lower halves, those of the next ones in
// their upper halves.
void ReadNibbles(const uint8_t* bytes, int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    codes[i] = bytes[i] & 0xF;
    codes[count + i] = bytes[i] >> 4;
  }
}

void ReadQ6KCodes(const uint8_t* low, const uint8_t* high, uint8_t* codes) {
  for (int half = 0; half < 2; ++half, low += 64, high += 32, codes += 128) {
    ReadNibbles(low, 64, codes);
    for (int i = 0; i < 128; ++i) codes[i] |= (high[i % 32] >> i / 32 * 2 & 3) << 4;
  }
}

// Eight scales and eight minimums of 6 bits in 12 bytes. The first four of each take the lower 6
// bits of bytes 0..3 and 4..7; the others a half of bytes 8..11, and the 2 bits that those left.
void ReadFactors(const uint8_t* packed, BlockScales& scales) {
  for (int i = 0; i < 4; ++i) {
    scales.scale_factors[i] = packed[i] & 63;
    scales.minimum_factors[i] = packed[i + 4] & 63;
    scales.scale_factors[i + 4] = (packed[i + 8] & 0xF) | packed[i] >> 6 << 4;
    scales.minimum_factors[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
  }
}

void DequantizeBlock(DType type, const std::byte* block, float* out) {
  uint8_t codes[kMaxBlockElements];
  ReadCodes(type, block, codes);
  const BlockScales scales = ReadScales(type, block);
  const float block_scale = F16ToF32(scales.scale);
  const float block_minimum = F16ToF32(scales.minimum);
  const int64_t step = ScaledElements(type);
  const bool has_minimum = LayoutOf(type).minimum >= 0;
  for (int64_t i = 0; i < BlockOf(type).elements; ++i) {
    const int64_t group = i / step;
    float scale = block_scale;
    float minimum = block_minimum;
    if (type == DType::kQ6K) {
      scale *= static_cast<int8_t>(scales.scale_factors[group]);
    } else if (LayoutOf(type).factors >= 0) {
      scale *= scales.scale_factors[group];
      minimum *= -static_cast<float>(scales.minimum_factors[group]);
    }
    out[i] = scale * static_cast<float>(codes[i] - CodeOffset(type));
    if (has_minimum) out[i] += minimum;
  }
}

}  // namespace

void ReadCodes(DType type, const std::byte* block, uint8_t* codes) {
  const Layout layout = LayoutOf(type);
  const auto* bytes = reinterpret_cast<const uint8_t*>(block);
  const uint8_t* low = bytes + layout.low;
  const uint8_t* high = bytes + layout.high;
  switch (type) {
    case DType::kQ8_0:
      for (int i = 0; i < 32; ++i) codes[i] = low[i] ^ 0x80;
      return;
    case DType::kQ6K:
      return ReadQ6KCodes(low, high, codes);
    case DType::kQ4K:
    case DType::kQ5K:
      for (int64_t i = 0; i < 4; ++i) ReadNibbles(low + i * 32, 32, codes + i * 64);
      if (type == DType::kQ4K) return;
      for (int i = 0; i < 256; ++i) codes[i] |= (high[i % 32] >> i / 32 & 1) << 4;
      return;
    default:
      EVERLONG_CHECK(IsQuantized(type));
      ReadNibbles(low, 16, codes);
      if (layout.high < 0) return;
      for (int i = 0; i < 32; ++i) codes[i] |= (high[i / 8] >> i % 8 & 1) << 4;
  }
}

BlockScales ReadScales(DType type, const std::byte* block) {
  const Layout layout = LayoutOf(type);
  BlockScales scales;
  scales.scale = ReadHalf(block + layout.scale);
  if (layout.minimum >= 0) scales.minimum = ReadHalf(block + layout.minimum);
  if (type == DType::kQ6K) {
    std::memcpy(scales.scale_factors, block + layout.factors, 16);
  } else if (layout.factors >= 0) {
    ReadFactors(reinterpret_cast<const uint8_t*>(block) + layout.factors, scales);
  }
  return scales;
}

void DequantizeRow(DType type, const void* row, int64_t cols, float* out) {
  const auto* from = static_cast<const std::byte*>(row);
  const BlockShape block = BlockOf(type);
  EVERLONG_CHECK(cols % block.elements == 0);
  for (int64_t i = 0; i < cols; i += block.elements, from += block.bytes) {
    if (IsQuantized(type)) {
      DequantizeBlock(type, from, out + i);
    } else {
      out[i] = ReadElement(from, type);
    }
  }
}

}  // namespace everlong
