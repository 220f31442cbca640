#include "engine/output_text.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/tokenizer/tiny_tokenizer.h"

namespace everlong {
namespace {

// Tokens of one to four letters, so that stop strings begin, end and lie anywhere in them.
class OutputTextOfLongTokens : public ::testing::Test {
 protected:
  OutputTextOfLongTokens()
      : tokenizer_(MakeTokenizer(ByteLevelJson({{"a", "b"},
                                                {"b", "a"},
                                                {"ab", "ab"},
                                                {"ab", "c"},
                                                {"b", "c"},
                                                {"\u00E2", "\u0124"}}))) {}

  int32_t Id(std::string_view token) const { return tokenizer_->Find(token); }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(OutputTextOfLongTokens, StopStringInTheMidstOfATokenEndsTheText) {
  OutputText text(tokenizer_.get(), true, {"ba"});
  EXPECT_EQ(text.Append(Id("abab")), "a");
  EXPECT_EQ(text.matched_stop(), 0);
}

TEST_F(OutputTextOfLongTokens, StopStringAcrossThreeTokensEndsTheText) {
  OutputText text(tokenizer_.get(), true, {"babcab"});
  EXPECT_EQ(text.Append(Id("ab")), "a");
  EXPECT_EQ(text.Append(Id("abc")), "");
  EXPECT_EQ(text.Append(Id("abab")), "");
  EXPECT_EQ(text.matched_stop(), 0);
}

TEST_F(OutputTextOfLongTokens, TheStopStringThatStartsFirstCounts) {
  OutputText text(tokenizer_.get(), true, {"bab", "ab"});
  EXPECT_EQ(text.Append(Id("abab")), "");
  EXPECT_EQ(text.matched_stop(), 1);
}

TEST_F(OutputTextOfLongTokens, SkippedSpecialTokensDoNotInterruptAStopString) {
  OutputText text(tokenizer_.get(), true, {"ac"});
  EXPECT_EQ(text.Append(Id("a")), "");
  EXPECT_EQ(text.Append(Id("<|end|>")), "");
  EXPECT_EQ(text.Append(Id("c")), "");
  EXPECT_EQ(text.matched_stop(), 0);
}

// What is sent is the text before the first stop string, and nothing is held longer than needed.
TEST_F(OutputTextOfLongTokens, RandomTokensEqualASearchInTheWholeText) {
  std::mt19937 random(1);
  const std::vector<int32_t> tokens = {Id("a"),      Id("b"),     Id("c"),    Id("ab"),
                                       Id("ba"),     Id("abc"),   Id("abab"), Id("\u00E2"),
                                       Id("\u0124"), Id("\u00AC")};
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop;
      for (uint32_t j = 0; j < 1 + random() % 5; ++j) stop += static_cast<char>('a' + random() % 3);
      stops.push_back(stop);
    }
    OutputText output(tokenizer_.get(), true, stops);
    StreamDecoder decoder(tokenizer_.get(), true);
    std::string whole, sent;
    size_t first = std::string::npos;
    for (int i = 0; i < 12 && first == std::string::npos; ++i) {
      const int32_t id = tokens[random() % tokens.size()];
      whole += decoder.Append(id);
      sent += output.Append(id);
      for (const std::string& stop : stops) first = std::min(first, whole.find(stop));
      ASSERT_EQ(output.matched_stop() >= 0, first != std::string::npos);
      size_t held = 0;
      for (const std::string& stop : stops) {
        for (size_t length = 1; length < stop.size(); ++length) {
          if (whole.ends_with(stop.substr(0, length))) held = std::max(held, length);
        }
      }
      const bool has_ended = first != std::string::npos;
      ASSERT_EQ(sent, whole.substr(0, has_ended ? first : whole.size() - held));
    }
    if (first != std::string::npos) continue;
    EXPECT_EQ(sent + output.Finish(), whole + decoder.Finish());
  }
}

}  // namespace
}  // namespace everlong
