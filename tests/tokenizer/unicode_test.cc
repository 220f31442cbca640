#include "engine/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include <string>

namespace everlong {
namespace {

TEST(Unicode, NormalFormsComposeAndDecompose) {
  const std::string text = "e\u0301 \u00E9 \u1100\u1161\u11A8 \u212B \uFB01 \u0344\n";
  EXPECT_EQ(ToNormalForm(text, NormalForm::kNfc),
            "\u00E9 \u00E9 \uAC01 \u00C5 \uFB01 \u0308\u0301\n");
  EXPECT_EQ(ToNormalForm(text, NormalForm::kNfd),
            "e\u0301 e\u0301 \u1100\u1161\u11A8 A\u030A \uFB01 \u0308\u0301\n");
  EXPECT_EQ(ToNormalForm(text, NormalForm::kNfkc), "\u00E9 \u00E9 \uAC01 \u00C5 fi \u0308\u0301\n");
  EXPECT_EQ(ToNormalForm("\uFDFA", NormalForm::kNfkd).size(), 33u);
  EXPECT_EQ(ToNormalForm("", NormalForm::kNfc), "");
}

TEST(Unicode, MarksAreOrderedByCombiningClass) {
  EXPECT_EQ(ToNormalForm("a\u0301\u0323", NormalForm::kNfc), "\u1EA1\u0301");
  EXPECT_EQ(ToNormalForm("q\u0307\u0323\u0308", NormalForm::kNfd), "q\u0323\u0307\u0308");
  // A mark after a line's end stays there.
  EXPECT_EQ(ToNormalForm("e\n\u0301\u0323", NormalForm::kNfc), "e\n\u0323\u0301");
}

// Insertion would take minutes.
TEST(Unicode, LongRunsOfMarksAreOrdered) {
  constexpr int kNumPairs = 250'000;
  std::string text, above, below;
  for (int i = 0; i < kNumPairs; ++i) {
    text += "\u0301\u0323";
    above += "\u0301";
    below += "\u0323";
  }
  EXPECT_EQ(ToNormalForm("q" + text, NormalForm::kNfc), "q" + below + above);
}

TEST(Unicode, LowercaseIsByCodePoint) {
  EXPECT_EQ(ToLowercase("\u00C4 \u1E9E \u03A3\u03A3 \u0130 \u01C5 \U00010400 a1"),
            "\u00E4 \u00DF \u03C3\u03C3 i\u0307 \u01C6 \U00010428 a1");
}

}  // namespace
}  // namespace everlong
