#include "engine/tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace everlong {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Words(const char* component, std::string_view text, bool at_start = true) {
  const auto pre_tokenizer =
      PreTokenizer::FromJson({{"pre_tokenizer", nlohmann::json::parse(component)}});
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  std::vector<std::string> words;
  const absl::Status status = pre_tokenizer->Split(
      text, at_start, [&](std::string_view word) { words.emplace_back(word); });
  EXPECT_TRUE(status.ok()) << status;
  return words;
}

std::string SplitAtHyphens(const char* behavior, const char* invert = "false") {
  return std::string(R"({"type": "Split", "pattern": {"String": "-"}, "behavior": ")") + behavior +
         R"(", "invert": )" + invert + "}";
}

// The examples of Hugging Face tokenizers' documentation.
TEST(PreTokenizer, BehaviorsPlaceTheMatches) {
  const std::string_view text = "The-final--countdown";
  EXPECT_THAT(Words(SplitAtHyphens("Removed").c_str(), text),
              ElementsAre("The", "final", "countdown"));
  EXPECT_THAT(Words(SplitAtHyphens("Isolated").c_str(), text),
              ElementsAre("The", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Words(SplitAtHyphens("MergedWithPrevious").c_str(), text),
              ElementsAre("The-", "final-", "-", "countdown"));
  EXPECT_THAT(Words(SplitAtHyphens("MergedWithNext").c_str(), text),
              ElementsAre("The", "-final", "-", "-countdown"));
  EXPECT_THAT(Words(SplitAtHyphens("Contiguous").c_str(), text),
              ElementsAre("The", "-", "final", "--", "countdown"));
  EXPECT_THAT(Words(SplitAtHyphens("Removed", "true").c_str(), text), ElementsAre("-", "-", "-"));
  EXPECT_THAT(Words(SplitAtHyphens("MergedWithNext").c_str(), "-a-"), ElementsAre("-a", "-"));
  EXPECT_THAT(Words(SplitAtHyphens("MergedWithPrevious").c_str(), "-a-"), ElementsAre("-", "a-"));
}

TEST(PreTokenizer, ByteLevelCutsLikeGpt2) {
  EXPECT_THAT(Words(R"({"type": "ByteLevel", "add_prefix_space": false})", "I'm 42,  you?\n\nYes"),
              ElementsAre("I", "'m", " 42", ",", " ", " you", "?", "\n", "\n", "Yes"));
  EXPECT_THAT(Words(R"({"type": "ByteLevel"})", "a b"), ElementsAre(" a", " b"));
  EXPECT_THAT(Words(R"({"type": "ByteLevel"})", " a"), ElementsAre(" a"));
  EXPECT_THAT(
      Words(R"({"type": "ByteLevel", "use_regex": false, "add_prefix_space": false})", "a b"),
      ElementsAre("a b"));
}

TEST(PreTokenizer, NamedKindsCutAsTheirNamesSay) {
  EXPECT_THAT(Words(R"({"type": "Digits", "individual_digits": true})", "a12\u00BD"),
              ElementsAre("a", "1", "2", "\u00BD"));
  EXPECT_THAT(Words(R"({"type": "Digits"})", "a12\u00BDb"), ElementsAre("a", "12\u00BD", "b"));
  EXPECT_THAT(Words(R"({"type": "Punctuation"})", "a+b\u2026!"),
              ElementsAre("a", "+", "b", "\u2026", "!"));
  EXPECT_THAT(Words(R"({"type": "Whitespace"})", " it's  \u00E9t\u00E9_1"),
              ElementsAre("it", "'", "s", "\u00E9t\u00E9_1"));
  EXPECT_THAT(Words(R"({"type": "WhitespaceSplit"})", " it's\u3000so "), ElementsAre("it's", "so"));
}

TEST(PreTokenizer, MetaspaceMarksSpaces) {
  const char* const always = R"({"type": "Metaspace", "replacement": "_"})";
  EXPECT_THAT(Words(always, "a  b"), ElementsAre("_a", "_", "_b"));
  EXPECT_THAT(Words(always, " a"), ElementsAre("_a"));
  EXPECT_THAT(Words(always, "_a"), ElementsAre("_a"));
  const char* const never =
      R"({"type": "Metaspace", "replacement": "_", "add_prefix_space": false})";
  EXPECT_THAT(Words(never, "a b"), ElementsAre("a", "_b"));
  const char* const first =
      R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": false})";
  EXPECT_THAT(Words(first, "a b"), ElementsAre("_a_b"));
  EXPECT_THAT(Words(first, "a b", false), ElementsAre("a_b"));
}

TEST(PreTokenizer, EachOfASequenceSeesPieces) {
  const char* const sequence = R"({"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true}, {"type": "WhitespaceSplit"},
      {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}]})";
  EXPECT_THAT(Words(sequence, "ab c12"), ElementsAre("_ab", "c", "1", "2"));
  EXPECT_THAT(Words(sequence, "1 a"), ElementsAre("_1", "a"));
  EXPECT_THAT(Words("null", "a b"), ElementsAre("a b"));
  EXPECT_THAT(Words("null", ""), ElementsAre());
}

}  // namespace
}  // namespace everlong
