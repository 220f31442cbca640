#include "engine/gguf.h"

#include <limits>
#include <random>
#include <string>

#include "engine/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoint/gguf_files.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_0 = 2;

// Parses a copy of exactly these bytes, so that a sanitizer sees any access past the end.
absl::StatusOr<GgufFile> Parse(std::string_view file, std::vector<char>& copy) {
  copy.assign(file.begin(), file.end());
  copy.shrink_to_fit();
  return ParseGguf({copy.data(), copy.size()});
}

std::string ErrorOf(std::string_view file) {
  std::vector<char> copy;
  const auto parsed = Parse(file, copy);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << file;
  return std::string(Message(parsed.status()));
}

std::string ValueError(GgufType type, std::string_view value) {
  return ErrorOf(GgufFileBytes({GgufValueEntry("the.key", type, value)}, {}, ""));
}

// Of a tensor "t" with 64 bytes of data.
std::string TensorError(const std::vector<int64_t>& dimensions, uint32_t type, uint64_t offset) {
  const std::string entry = GgufTensorEntry("t", dimensions, type, offset);
  return ErrorOf(GgufFileBytes({}, {entry}, std::string(64, 'd')));
}

std::string SoundFile() {
  GgufBuilder file;
  file.Set("text", "words");
  file.Set("flag", true);
  file.Set("count", uint32_t{7});
  file.Set("rate", 0.5f);
  file.Set("texts", std::vector<std::string>{"a", "", "bc"});
  file.Set("numbers", std::vector<int32_t>{3, -4});
  file.AddTensor("matrix", GgmlType::kQ4_0, {2, 32}, std::string(36, 'q'));
  file.AddTensor("vector", GgmlType::kF32, {2}, std::string(8, 'v'));
  file.AddTensor("unknown", GgmlType::kIq2Xs, {1, 256}, std::string(74, 'u'));
  return file.Bytes();
}

// What holds for every file that is taken, however it came about.
void ExpectSound(const GgufFile& gguf, const std::vector<char>& file) {
  const char* begin = file.data();
  const char* end = begin + file.size();
  for (const auto& [name, tensor] : gguf.tensors) {
    if (!tensor.dtype) continue;
    EXPECT_GE(tensor.bytes.data(), begin) << name;
    EXPECT_LE(tensor.bytes.data() + tensor.bytes.size(), end) << name;
    int64_t bytes = RowBytes(*tensor.dtype, tensor.shape.back());
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) bytes *= tensor.shape[i];
    EXPECT_EQ(bytes, static_cast<int64_t>(tensor.bytes.size())) << name;
  }
  for (const auto& [key, array] : gguf.arrays) {
    EXPECT_LE(array.bytes.data() + array.bytes.size(), end) << key;
    EXPECT_EQ(array.Strings().value_or(std::vector<std::string_view>(array.size)).size(),
              array.size)
        << key;
    EXPECT_EQ(array.Numbers().value_or(std::vector<double>(array.size)).size(), array.size) << key;
  }
}

TEST(GgufTest, FindsEveryValueAndTensor) {
  const std::string file = SoundFile();
  const auto parsed = ParseGguf(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->scalars,
            nlohmann::json({{"text", "words"}, {"flag", true}, {"count", 7}, {"rate", 0.5}}));
  EXPECT_THAT(parsed->arrays.at("texts").Strings().value(), ElementsAre("a", "", "bc"));
  EXPECT_THAT(parsed->arrays.at("numbers").Numbers().value(), ElementsAre(3, -4));
  EXPECT_FALSE(parsed->arrays.at("numbers").Strings());
  EXPECT_FALSE(parsed->arrays.at("texts").Numbers());
  const GgufTensor& matrix = parsed->tensors.at("matrix");
  EXPECT_EQ(matrix.type, "Q4_0");
  EXPECT_EQ(matrix.dtype, DType::kQ4_0);
  EXPECT_THAT(matrix.shape, ElementsAre(2, 32));
  EXPECT_EQ(matrix.bytes, std::string(36, 'q'));
  EXPECT_EQ(parsed->tensors.at("vector").bytes, std::string(8, 'v'));
  EXPECT_EQ(parsed->tensors.at("unknown").type, "IQ2_XS");
  EXPECT_FALSE(parsed->tensors.at("unknown").dtype);
}

TEST(GgufTest, ReadsEveryTypeOfNumber) {
  const std::vector<std::pair<GgufType, std::string>> numbers = {
      {GgufType::kUint8, GgufBytes(uint8_t{200})},
      {GgufType::kInt8, GgufBytes(int8_t{-100})},
      {GgufType::kUint16, GgufBytes(uint16_t{60000})},
      {GgufType::kInt16, GgufBytes(int16_t{-30000})},
      {GgufType::kInt32, GgufBytes(int32_t{-2})},
      {GgufType::kUint64, GgufBytes(uint64_t{1} << 63)},
      {GgufType::kInt64, GgufBytes(int64_t{-5})},
      {GgufType::kFloat64, GgufBytes(0.25)}};
  const std::vector<nlohmann::json> expected = {200, -100, 60000, -30000, -2, uint64_t{1} << 63,
                                                -5,  0.25};
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto& [type, bytes] = numbers[i];
    const std::string file = GgufFileBytes(
        {GgufValueEntry("one", type, bytes),
         GgufValueEntry("many", GgufType::kArray, GgufArrayBytes(type, 2, bytes + bytes))},
        {}, "");
    const auto parsed = ParseGguf(file);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->scalars["one"], expected[i]);
    const auto value = expected[i].get<double>();
    EXPECT_THAT(parsed->arrays.at("many").Numbers().value(), ElementsAre(value, value));
  }
}

TEST(GgufTest, TakesVersions2And3) {
  EXPECT_TRUE(ParseGguf(GgufFileBytes({}, {}, "", 2)).ok());
  EXPECT_TRUE(ParseGguf(GgufFileBytes({}, {}, "", 3)).ok());
  EXPECT_THAT(ErrorOf(GgufFileBytes({}, {}, "", 1)), HasSubstr("version 1 is not supported"));
  EXPECT_THAT(ErrorOf(GgufFileBytes({}, {}, "", 4)), HasSubstr("version 4 is not supported"));
  EXPECT_THAT(ErrorOf(GgufFileBytes({}, {}, "", 0x03000000)), HasSubstr("big-endian"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("not a GGUF file"));
  EXPECT_THAT(ErrorOf("GGML1234"), HasSubstr("not a GGUF file"));
}

TEST(GgufTest, RefusesAFileCutShortAnywhere) {
  const std::string file = SoundFile();
  // The last tensor, "vector", is followed by padding that may be missing.
  const size_t needed = file.size() - 32 + 8;
  for (size_t size = 0; size < needed; ++size) {
    std::vector<char> copy;
    EXPECT_FALSE(Parse(std::string_view(file).substr(0, size), copy).ok()) << size;
  }
  EXPECT_TRUE(ParseGguf(std::string_view(file).substr(0, needed)).ok());
}

TEST(GgufTest, NamesTheKeyOfADamagedValue) {
  const std::string huge = GgufBytes(std::numeric_limits<uint64_t>::max());
  EXPECT_THAT(ValueError(GgufType{13}, ""),
              AllOf(HasSubstr("metadata key \"the.key\""), HasSubstr("13 is not the number")));
  EXPECT_THAT(ValueError(GgufType::kString, huge + "x"),
              AllOf(HasSubstr("\"the.key\""), HasSubstr("exceeds the limit")));
  for (const GgufType type : {GgufType::kUint8, GgufType::kFloat64, GgufType::kString}) {
    EXPECT_THAT(ValueError(GgufType::kArray, GgufBytes(static_cast<uint32_t>(type)) + huge),
                HasSubstr("\"the.key\""));
  }
  EXPECT_THAT(ValueError(GgufType::kArray, GgufArrayBytes(GgufType{99}, 0, "")),
              HasSubstr("99 is not the number"));
  std::string nested = GgufArrayBytes(GgufType::kUint8, 0, "");
  for (int i = 0; i < 5; ++i) nested = GgufArrayBytes(GgufType::kArray, 1, nested);
  EXPECT_THAT(ValueError(GgufType::kArray, nested), HasSubstr("nested deeper than 4"));
  const std::string entry = GgufValueEntry("the.key", GgufType::kBool, "\x01");
  EXPECT_THAT(ErrorOf(GgufFileBytes({entry, entry}, {}, "")),
              AllOf(HasSubstr("\"the.key\""), HasSubstr("twice")));
  EXPECT_THAT(ErrorOf(GgufFileBytes({GgufBytes(uint64_t{1} << 40)}, {}, "")),
              AllOf(HasSubstr("metadata key 0"), HasSubstr("exceeds the limit")));
}

TEST(GgufTest, RefusesABadAlignment) {
  for (const uint32_t alignment : {0U, 3U, 24U, 1U << 21}) {
    EXPECT_THAT(ErrorOf(GgufFileBytes(
                    {GgufValueEntry("general.alignment", GgufType::kUint32, GgufBytes(alignment))},
                    {}, "")),
                HasSubstr("general.alignment"));
  }
}

TEST(GgufTest, NamesTheTensorThatDoesNotFit) {
  EXPECT_THAT(TensorError({}, kF32, 0), AllOf(HasSubstr("tensor \"t\""), HasSubstr("0 dimens")));
  EXPECT_THAT(TensorError({1, 1, 1, 1, 1}, kF32, 0), HasSubstr("5 dimensions"));
  for (const int64_t size : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_THAT(TensorError({size}, kF32, 0), HasSubstr("one of its dimensions is"));
  }
  const int64_t large = int64_t{1} << 40;
  EXPECT_THAT(TensorError({large, large, large}, kF32, 0), HasSubstr("too large"));
  EXPECT_THAT(TensorError({17}, kF32, 0), HasSubstr("its 68 bytes at offset 0 exceed the 64"));
  EXPECT_THAT(TensorError({9}, kF32, 32), HasSubstr("its 36 bytes at offset 32 exceed the 64"));
  EXPECT_THAT(TensorError({1}, kF32, uint64_t{1} << 63), HasSubstr("exceed the 64"));
  EXPECT_THAT(TensorError({1}, kF32, 16), HasSubstr("not a multiple of the alignment 32"));
  EXPECT_THAT(TensorError({48}, kQ4_0, 0), HasSubstr("rows of 48 are no multiple of Q4_0's"));
}

TEST(GgufTest, RefusesTensorsThatOverlapOrRepeat) {
  const std::string data(128, 'd');
  const auto entry = [](const char* name, int64_t size, uint64_t offset) {
    return GgufTensorEntry(name, {size}, kF32, offset);
  };
  EXPECT_TRUE(ParseGguf(GgufFileBytes({}, {entry("a", 8, 64), entry("b", 16, 0)}, data)).ok());
  EXPECT_THAT(ErrorOf(GgufFileBytes({}, {entry("a", 8, 32), entry("b", 16, 0)}, data)),
              AllOf(HasSubstr("tensor \"a\""), HasSubstr("inside the tensor that ends at 64")));
  EXPECT_THAT(ErrorOf(GgufFileBytes({}, {entry("a", 8, 0), entry("a", 8, 32)}, data)),
              AllOf(HasSubstr("tensor \"a\""), HasSubstr("twice")));
}

TEST(GgufTest, NamesATypeThatItDoesNotKnow) {
  const std::string entry = GgufTensorEntry("t", {3}, 77, 0);
  const std::string file = GgufFileBytes({}, {entry}, "");
  const auto parsed = ParseGguf(file);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->tensors.at("t").type, "number 77");
}

TEST(GgufTest, SurvivesRandomDamage) {
  const std::string sound = SoundFile();
  std::mt19937 random(1);
  int taken = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = sound;
    for (uint32_t i = 0; i <= random() % 3; ++i) {
      file[random() % file.size()] = static_cast<char>(random() % 4 == 0 ? random() : 0xFF);
    }
    std::vector<char> copy;
    const auto parsed = Parse(file, copy);
    if (!parsed.ok()) continue;
    ++taken;
    ExpectSound(*parsed, copy);
  }
  EXPECT_GT(taken, 1000);  // damage to names and data goes unnoticed
}

}  // namespace
}  // namespace everlong
