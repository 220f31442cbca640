#include "engine/safetensors.h"

#include <random>
#include <string>

#include "engine/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoint/checkpoint_files.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Parses a copy of exactly these bytes, so that a sanitizer sees any access past the end.
absl::StatusOr<SafetensorsTable> Parse(std::string_view file, std::vector<char>& copy) {
  copy.assign(file.begin(), file.end());
  copy.shrink_to_fit();
  return ParseSafetensors({copy.data(), copy.size()});
}

std::string ErrorOf(std::string_view file) {
  std::vector<char> copy;
  const auto parsed = Parse(file, copy);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << file;
  return std::string(Message(parsed.status()));
}

std::string SoundFile() {
  return SafetensorsBytes({{"embed", "BF16", {4, 2}, std::string(16, 'e')},
                           {"norm", "F32", {2}, std::string(8, 'n')},
                           {"scalar", "F16", {}, "sc"},
                           {"empty", "F32", {0, 7}, ""},
                           {"ids", "I64", {1}, std::string(8, 'i')}});
}

// What holds for every file that is taken, however it came about.
void ExpectSound(const SafetensorsTable& tensors, const std::vector<char>& file) {
  const char* begin = file.data();
  const char* end = begin + file.size();
  for (const auto& [name, tensor] : tensors) {
    EXPECT_GE(tensor.bytes.data(), begin + 8) << name;
    EXPECT_LE(tensor.bytes.data() + tensor.bytes.size(), end) << name;
    if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") continue;
    int64_t bytes = tensor.dtype == "F32" ? 4 : 2;
    for (int64_t dimension : tensor.shape) bytes *= dimension;
    EXPECT_EQ(bytes, static_cast<int64_t>(tensor.bytes.size())) << name;
  }
}

TEST(SafetensorsTest, FindsEveryTensor) {
  const std::string file = SoundFile();
  const auto tensors = ParseSafetensors(file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ(tensors->size(), 5U);
  EXPECT_EQ(tensors->at("embed").bytes, std::string(16, 'e'));
  EXPECT_EQ(tensors->at("embed").shape, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(tensors->at("norm").bytes, std::string(8, 'n'));
  EXPECT_EQ(tensors->at("scalar").bytes, "sc");
  EXPECT_EQ(tensors->at("empty").bytes, "");
  EXPECT_EQ(tensors->at("ids").dtype, "I64");
}

TEST(SafetensorsTest, TakesAFileWithoutTensors) {
  const auto tensors = ParseSafetensors(SafetensorsBytes("{}  ", ""));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_TRUE(tensors->empty());
}

TEST(SafetensorsTest, RefusesABadHeaderLength) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("0 bytes are too few"));
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("7 bytes are too few"));
  EXPECT_THAT(ErrorOf(std::string(8, '\xFF')), HasSubstr("header length 18446744073709551615"));
  EXPECT_THAT(ErrorOf(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("header length 3"));
  std::string huge("\x01\xE1\xF5\x05\0\0\0\0", 8);  // 100'000'001
  huge.resize(100'000'100, ' ');
  EXPECT_THAT(ErrorOf(huge), HasSubstr("100000001 exceeds the limit of 100000000"));
}

TEST(SafetensorsTest, RefusesAHeaderThatIsNoTable) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "not JSON"},
      {"{\"a\":", "not JSON"},
      {"{} {}", "not JSON"},
      {"{\"\xFF\": 1}", "not JSON"},
      {"[]", "not a JSON object"},
      {"7", "not a JSON object"},
      {"{\"a\": 1e999}", "number out of range"},
      {"{\"a\":" + std::string(100000, '['), "nested too deeply"},
      {"{\"a\": 1}", "tensor \"a\": its entry is not an object"},
      {"{\"a\": {}, \"a\": {}}", "key \"a\" is there twice"},
      {R"({"a": {"dtype": "F32", "dtype": "F32"}})", "key \"dtype\" is there twice"},
  };
  for (const auto& [header, reason] : cases) {
    EXPECT_THAT(ErrorOf(SafetensorsBytes(header, "")), AllOf(HasSubstr(reason)));
  }
}

TEST(SafetensorsTest, NamesTheTensorWithABadEntry) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("shape": [2], "data_offsets": [0, 8])", "dtype is missing"},
      {R"("dtype": 7, "shape": [2], "data_offsets": [0, 8])", "dtype is 7"},
      {R"("dtype": "F32", "data_offsets": [0, 8])", "no shape"},
      {R"("dtype": "F32", "shape": 2, "data_offsets": [0, 8])", "no shape"},
      {R"("dtype": "F32", "shape": [-2], "data_offsets": [0, 8])", "not -2"},
      {R"("dtype": "F32", "shape": [2.0], "data_offsets": [0, 8])", "not 2.0"},
      {R"("dtype": "F32", "shape": ["2"], "data_offsets": [0, 8])", "not \"2\""},
      {R"("dtype": "F32", "shape": [18446744073709551615], "data_offsets": [0, 8])", "shape"},
      {R"("dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8])", "too large"},
      {R"("dtype": "F32", "shape": [3], "data_offsets": [0, 8])", "takes 12 bytes, but it has 8"},
      {R"("dtype": "BF16", "shape": [2], "data_offsets": [0, 8])", "takes 4 bytes, but it has 8"},
      {R"("dtype": "F32", "shape": [2])", "data_offsets"},
      {R"("dtype": "F32", "shape": [2], "data_offsets": 8)", "data_offsets"},
      {R"("dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8])", "data_offsets"},
      {R"("dtype": "F32", "shape": [2], "data_offsets": [8, 0])", "data_offsets"},
      {R"("dtype": "F32", "shape": [2], "data_offsets": [-8, 0])", "data_offsets"},
      {R"("dtype": "F32", "shape": [4], "data_offsets": [0, 16])", "ends at byte 16 of 8"},
      {R"("dtype": "I8", "shape": [9], "data_offsets": [0, 9223372036854775807])", "of 8"},
  };
  for (const auto& [entry, reason] : cases) {
    const std::string header = std::string("{\"w\": {") + entry + "}}";
    EXPECT_THAT(ErrorOf(SafetensorsBytes(header, "12345678")),
                AllOf(HasSubstr("tensor \"w\": "), HasSubstr(reason)));
  }
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  const auto error_of = [](const char* second, const char* data) {
    return ErrorOf(SafetensorsBytes(
        std::string(R"({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}, "b": )"
                    R"({"dtype": "I8", "shape": [4], "data_offsets": )") +
            second + "}}",
        data));
  };
  EXPECT_THAT(error_of("[3, 8]", "12345678"),
              HasSubstr("\"b\": its data begins at byte 3, inside the tensor that ends at 4"));
  EXPECT_THAT(error_of("[0, 4]", "1234"), HasSubstr("inside"));
  EXPECT_THAT(error_of("[2, 2]", "1234"), HasSubstr("inside"));
  EXPECT_THAT(error_of("[5, 8]", "12345678"),
              HasSubstr("\"b\": its data begins at byte 5, past the last that ends at 4"));
  EXPECT_THAT(error_of("[4, 8]", "1234567890"), HasSubstr("2 bytes after the last tensor"));
}

TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string file = SoundFile();
  for (size_t size = 0; size < file.size(); ++size) ErrorOf(file.substr(0, size));
}

TEST(SafetensorsTest, SurvivesEveryFlippedBit) {
  const std::string file = SoundFile();
  std::vector<char> copy;
  for (size_t bit = 0; bit < 8 * file.size(); ++bit) {
    std::string damaged = file;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    const auto tensors = Parse(damaged, copy);
    if (tensors.ok()) ExpectSound(*tensors, copy);
  }
}

TEST(SafetensorsTest, SurvivesRandomDamage) {
  const std::string file = SoundFile();
  constexpr std::string_view kStructure = "{}[]\",:0123456789-.e \\";
  std::mt19937 random(1);
  std::vector<char> copy;
  for (int round = 0; round < 8000; ++round) {
    std::string damaged = file;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % damaged.size();
      const char byte = random() % 2 == 0 ? kStructure[random() % kStructure.size()]
                                          : static_cast<char>(random());
      switch (random() % 3) {
        case 0:
          damaged[at] = byte;
          break;
        case 1:
          damaged.insert(at, 1, byte);
          break;
        default:
          damaged.erase(at, 1 + random() % 8);
      }
    }
    const auto tensors = Parse(damaged, copy);
    if (tensors.ok()) ExpectSound(*tensors, copy);
  }
}

}  // namespace
}  // namespace everlong
