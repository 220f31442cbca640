// DequantizeRow: blocks made by hand from the formats' layouts, with the values that they stand
// for.
#include "kernels/quant.h"

#include <cstring>
#include <initializer_list>

#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "tests/kernels/numerics.h"

namespace everlong {
namespace {

// A block of zeros in which single bytes and halves are set.
class Block {
 public:
  explicit Block(DType type) : type_(type), bytes_(BlockOf(type).bytes) {}

  Block& Half(int64_t at, float value) {
    const uint16_t bits = F32ToF16(value);
    std::memcpy(&bytes_[at], &bits, sizeof(bits));
    return *this;
  }
  Block& Bytes(int64_t at, std::initializer_list<int> values) {
    for (const int value : values) bytes_[at++] = static_cast<std::byte>(value);
    return *this;
  }

  // At an odd byte.
  Values Dequantized() const {
    std::vector<std::byte> moved(1);
    moved.insert(moved.end(), bytes_.begin(), bytes_.end());
    Values values(BlockOf(type_).elements);
    DequantizeRow(type_, moved.data() + 1, static_cast<int64_t>(values.size()), values.data());
    return values;
  }

 private:
  DType type_;
  std::vector<std::byte> bytes_;
};

// `rest` everywhere but at some indices.
Values AllBut(size_t size, float rest, std::initializer_list<std::pair<int, float>> others) {
  Values values(size, rest);
  for (const auto& [index, value] : others) values[index] = value;
  return values;
}

TEST(DequantizeTest, Q8_0IsScaleTimesSignedByte) {
  const Values values =
      Block(DType::kQ8_0).Half(0, -0.5f).Bytes(2, {1, 0x80, 0x7F}).Bytes(33, {0xFF}).Dequantized();
  EXPECT_EQ(values, AllBut(32, 0.0f, {{0, -0.5f}, {1, 64.0f}, {2, -63.5f}, {31, 0.5f}}));
}

TEST(DequantizeTest, Q4_0HasUpperHalvesSixteenElementsOnAndSubtractsEight) {
  const Values values =
      Block(DType::kQ4_0).Half(0, 2.0f).Bytes(2, {0x9F}).Bytes(17, {0x07}).Dequantized();
  EXPECT_EQ(values, AllBut(32, -16.0f, {{0, 14.0f}, {16, 2.0f}, {15, -2.0f}}));
}

TEST(DequantizeTest, Q4_1AddsAMinimum) {
  const Values values =
      Block(DType::kQ4_1).Half(0, 0.25f).Half(2, -1.5f).Bytes(5, {0xA3}).Dequantized();
  EXPECT_EQ(values, AllBut(32, -1.5f, {{1, -0.75f}, {17, 1.0f}}));
}

TEST(DequantizeTest, Q5_0TakesTheFifthBitFromAWordInOrderOfElements) {
  // Bits 0, 9 and 31.
  const Values values = Block(DType::kQ5_0)
                            .Half(0, 1.0f)
                            .Bytes(2, {0x01, 0x02, 0x00, 0x80})
                            .Bytes(6, {0x32})
                            .Bytes(21, {0xF0})
                            .Dequantized();
  EXPECT_EQ(values, AllBut(32, -16.0f, {{0, 2.0f}, {9, 0.0f}, {16, -13.0f}, {31, 15.0f}}));
}

TEST(DequantizeTest, Q5_1AddsAMinimum) {
  const Values values = Block(DType::kQ5_1)
                            .Half(0, 0.5f)
                            .Half(2, 3.0f)
                            .Bytes(4, {0x00, 0x00, 0x01, 0x00})
                            .Bytes(8, {0x21})
                            .Dequantized();
  EXPECT_EQ(values, AllBut(32, 3.0f, {{0, 3.5f}, {16, 12.0f}}));
}

// Factors 0..3 of scales: 1, 2, 3, 63; of minimums: 4, 5, 6, 7. The others: 16 * 1 + 2 = 18, 35,
// 52, 5; and 33, 18, 3, 52, whose upper two bits lie above those of the first ones.
constexpr std::initializer_list<int> kFactors = {0x41, 0x82, 0xC3, 0x3F, 0x84, 0x45,
                                                 0x06, 0xC7, 0x12, 0x23, 0x34, 0x45};

TEST(DequantizeTest, Q4KHasEightScalesAndMinimumsOfSixBits) {
  const Values values = Block(DType::kQ4K)
                            .Half(0, 0.5f)
                            .Half(2, 0.25f)
                            .Bytes(4, kFactors)
                            .Bytes(16, {0xF1})
                            .Bytes(16 + 127, {0x4A})
                            .Dequantized();
  Values expected;
  for (const float minimum : {4.0f, 5.0f, 6.0f, 7.0f, 33.0f, 18.0f, 3.0f, 52.0f}) {
    expected.insert(expected.end(), 32, -0.25f * minimum);
  }
  expected[0] += 0.5f * 1 * 1;
  expected[32] += 0.5f * 2 * 15;
  expected[223] += 0.5f * 52 * 10;
  expected[255] += 0.5f * 5 * 4;
  EXPECT_EQ(values, expected);
}

TEST(DequantizeTest, Q5KHasTheFifthBitsOfEightElementsInAByte) {
  // Byte i of the upper bits holds those of elements i, i + 32, ...
  const Values values = Block(DType::kQ5K)
                            .Half(0, 1.0f)
                            .Half(2, 2.0f)
                            .Bytes(4, kFactors)
                            .Bytes(16 + 1, {0x81})
                            .Bytes(48 + 1, {0x03})
                            .Bytes(48 + 127, {0x21})
                            .Dequantized();
  Values expected;
  for (const float minimum : {4.0f, 5.0f, 6.0f, 7.0f, 33.0f, 18.0f, 3.0f, 52.0f}) {
    expected.insert(expected.end(), 32, -2.0f * minimum);
  }
  expected[1] += 1.0f * 19;
  expected[223] += 52.0f * 1;
  expected[225] += 5.0f * 16;
  expected[255] += 5.0f * 2;
  EXPECT_EQ(values, expected);
}

TEST(DequantizeTest, Q6KHasSixteenSignedScalesAndSubtracts32) {
  // In each half of the block: lower bits of elements 0..63 in lower halves of 64 bytes, of 64..127
  // in upper ones; upper bits of elements i, i + 32, i + 64, i + 96 in byte i.
  const Values values = Block(DType::kQ6K)
                            .Half(208, 0.5f)
                            .Bytes(0, {0x5A})
                            .Bytes(63, {0xC0})
                            .Bytes(64 + 32, {0x01})
                            .Bytes(128, {0b11'10'01'00})
                            .Bytes(128 + 32 + 31, {0b01'00'00'00})
                            .Bytes(192, {1, 0x80, 0, 0x7F})
                            .Bytes(192 + 4, {2})
                            .Bytes(192 + 6, {3, 4})
                            .Bytes(192 + 10, {0xFF})
                            .Bytes(207, {5})
                            .Dequantized();
  Values expected(256, 0.0f);
  const auto fill = [&](int scale, float factor) {
    for (int i = 0; i < 16; ++i) expected[scale * 16 + i] = 0.5f * factor * -32;
  };
  fill(0, 1);
  fill(1, -128);
  fill(3, 127);
  fill(4, 2);
  fill(6, 3);
  fill(7, 4);
  fill(10, -1);
  fill(15, 5);
  expected[0] = 0.5f * 1 * (10 - 32);
  expected[64] = 0.5f * 2 * (5 + 32 - 32);
  expected[96] = 0.5f * 3 * (48 - 32);
  expected[127] = 0.5f * 4 * (12 - 32);
  expected[160] = 0.5f * -1 * (1 - 32);
  expected[255] = 0.5f * 5 * (16 - 32);
  EXPECT_EQ(values, expected);
}

TEST(DequantizeTest, ScalesMayBeSubnormal) {
  const Values values =
      Block(DType::kQ4_1).Half(0, 0x1p-24f).Half(2, -0x1p-24f).Bytes(4, {0x0F}).Dequantized();
  EXPECT_EQ(values, AllBut(32, -0x1p-24f, {{0, 14 * 0x1p-24f}}));
}

TEST(DequantizeTest, ReadsPlainTypesAtAnyByte) {
  const Values expected = {1.5f, -2.0f, 0.0f, 0x1p-24f};
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    std::vector<std::byte> bytes = Encode(type, expected);
    bytes.insert(bytes.begin(), std::byte{});
    Values values(expected.size());
    DequantizeRow(type, bytes.data() + 1, static_cast<int64_t>(values.size()), values.data());
    EXPECT_EQ(values, expected) << TypeName(type);
  }
}

TEST(DequantizeTest, GoesFromBlockToBlock) {
  std::vector<std::byte> row(3 * 18);
  for (int i = 0; i < 3; ++i) {
    const uint16_t scale = F32ToF16(static_cast<float>(i + 1));
    std::memcpy(&row[i * 18], &scale, 2);
  }
  Values values(96);
  DequantizeRow(DType::kQ4_0, row.data(), 96, values.data());
  Values expected(96);
  for (int i = 0; i < 96; ++i) expected[i] = -8.0f * static_cast<float>(i / 32 + 1);
  EXPECT_EQ(values, expected);
}

}  // namespace
}  // namespace everlong
