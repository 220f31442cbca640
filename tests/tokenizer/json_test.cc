#include "engine/tokenizer/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace everlong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Strings(const StringTable& table) {
  std::vector<std::string> strings;
  for (size_t i = 0; i < table.size(); ++i) strings.emplace_back(table[i]);
  return strings;
}

TEST(TokenizerJson, VocabularyAndMergesBecomeTables) {
  const auto document = ParseTokenizerJson(R"({
    "other": {"vocab": {"x": 1}, "merges": ["p q"]},
    "model": {"type": "BPE", "vocab": {"b": 1, "a": 0, "\u0120a": 7}, "nested": {"vocab": [1]},
              "merges": ["#version: 0.2", "a b", ["c d", "e"]], "dropout": null},
    "model_max_length": [1.5, -2, true, "x"]})");
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_THAT(Strings(document->tokens), ElementsAre("b", "a", "\u0120a"));
  EXPECT_THAT(document->ids, ElementsAre(1, 0, 7));
  EXPECT_THAT(Strings(document->merges), ElementsAre("a", "b", "c d", "e"));
  EXPECT_EQ(document->rest, nlohmann::json::parse(R"({
    "other": {"vocab": {"x": 1}, "merges": ["p q"]},
    "model": {"type": "BPE", "nested": {"vocab": [1]}, "dropout": null},
    "model_max_length": [1.5, -2, true, "x"]})"));
}

std::string ErrorOf(std::string_view json) {
  const auto document = ParseTokenizerJson(json);
  return document.ok() ? "" : std::string(document.status().message());
}

TEST(TokenizerJson, ErrorsNameThePlace) {
  EXPECT_THAT(ErrorOf("{\"a\": 1,}"), HasSubstr("line 1, column 9"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("the document is array, should be an object"));
  EXPECT_THAT(ErrorOf(R"({"model": {"vocab": {"a": 1.5}}})"),
              HasSubstr("token \"a\" has number where its id should be"));
  EXPECT_THAT(ErrorOf(R"({"model": {"vocab": {"a": {}}}})"),
              HasSubstr("token \"a\" has an object"));
  EXPECT_THAT(ErrorOf(R"({"model": {"vocab": {"a": 18446744073709551615}}})"),
              HasSubstr("outside [0,"));
  EXPECT_THAT(ErrorOf(R"({"model": {"vocab": {}, "vocab": {}}})"), HasSubstr("a second value"));
  EXPECT_THAT(ErrorOf(R"({"model": {"merges": ["a b", "ab"]}})"), HasSubstr("entry 1 has \"ab\""));
  EXPECT_THAT(ErrorOf(R"({"model": {"merges": ["a b c"]}})"), HasSubstr("entry 0 has \"a b c\""));
  EXPECT_THAT(ErrorOf(R"({"model": {"merges": [["a"]]}})"), HasSubstr("1 strings"));
  EXPECT_THAT(ErrorOf(R"({"model": {"merges": [[["a", "b"]]]}})"),
              HasSubstr("an array in an array"));
  EXPECT_THAT(ErrorOf(R"({"model": {"merges": [null]}})"), HasSubstr("entry 0 has null"));
  EXPECT_THAT(ErrorOf(std::string(40, '[')), HasSubstr("nested deeper than 32 levels"));
}

TEST(TokenizerJson, SequencesBecomeOneList) {
  const auto document = nlohmann::json::parse(R"({"kind": {"type": "Sequence", "list": [
      {"type": "A"}, {"type": "Sequence", "list": [{"type": "B", "x": 1}, {"type": "C"}]}]}})");
  const auto components = ComponentsMember(document, "kind", "list");
  ASSERT_TRUE(components.ok()) << components.status();
  ASSERT_EQ(components->size(), 3u);
  EXPECT_EQ((*components)[1].type, "B");
  EXPECT_EQ((*components)[1].json["x"], 1);
  EXPECT_TRUE(ComponentsMember(document, "none", "list")->empty());
}

}  // namespace
}  // namespace everlong
