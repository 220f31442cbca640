#include "engine/text.h"

#include <gtest/gtest.h>

#include <random>

namespace everlong {
namespace {

TEST(Text, EveryCodePointGoesToUtf8AndBack) {
  for (char32_t code_point = 0; code_point < 0x110000; ++code_point) {
    std::string text;
    AppendUtf8(code_point, &text);
    const bool is_surrogate = code_point >= 0xD800 && code_point < 0xE000;
    ASSERT_EQ(Utf8Length(text), is_surrogate ? 0 : text.size()) << std::hex << uint32_t{code_point};
    if (is_surrogate) continue;
    size_t offset = 0;
    ASSERT_EQ(NextCodePoint(text, &offset), code_point);
    ASSERT_EQ(offset, text.size());
    ASSERT_EQ(LastCodePointOffset("\u20AC" + text), 3u);
  }
}

TEST(Text, InvalidSequencesAreFoundAtAnyOffset) {
  const std::string_view invalid[] = {
      "\x80",              // no lead
      "\xC0\xAF",          // overlong
      "\xC1\xBF",          //
      "\xE0\x9F\xBF",      //
      "\xF0\x8F\xBF\xBF",  //
      "\xED\xA0\x80",      // surrogate
      "\xF4\x90\x80\x80",  // above U+10FFFF
      "\xF5\x80\x80\x80",  //
      "\xFF",              //
      "\xC3",              // unfinished
      "\xE2\x82",          //
      "\xF0\x9F\x98",      //
      "\xE2\x28\xA1",      // interrupted
  };
  for (const std::string_view sequence : invalid) {
    for (size_t before = 0; before < 20; ++before) {
      const std::string text = std::string(before, 'a') + std::string(sequence);
      EXPECT_EQ(FindInvalidUtf8(text), before);
      EXPECT_EQ(FindInvalidUtf8("\u00E9" + text + "\u20AC tail"), before + 2);
    }
  }
  EXPECT_EQ(FindInvalidUtf8(""), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("plain, \u00E9, \u20AC and \U0001F600"), std::string_view::npos);
}

// The examples of table 3-8 and its neighbours in the Unicode standard, chapter 3.9.
TEST(Text, EachMaximalSubpartBecomesOneReplacement) {
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFDB");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(ReplaceInvalidUtf8("a\u20AC\xE2\x82"), "a\u20AC\uFFFD");
}

TEST(Text, IncompleteSuffixIsWhatMoreBytesCouldComplete) {
  const std::string text = "a\u00E9\u20AC\U0001F600";
  for (size_t length = 0; length <= text.size(); ++length) {
    const std::string_view prefix = std::string_view(text).substr(0, length);
    const size_t invalid = FindInvalidUtf8(prefix);
    EXPECT_EQ(IncompleteUtf8Suffix(prefix), invalid == prefix.npos ? 0 : length - invalid);
  }
  EXPECT_EQ(IncompleteUtf8Suffix("a\x80"), 0u);
  EXPECT_EQ(IncompleteUtf8Suffix("\xC0"), 0u);
  EXPECT_EQ(IncompleteUtf8Suffix("\xED\xA0"), 0u);
  EXPECT_EQ(IncompleteUtf8Suffix("\xFF\xE2"), 1u);
}

// A stream that is cut before incomplete sequences is replaced as the whole is.
TEST(Text, ReplacingPiecewiseEqualsReplacingTheWhole) {
  std::mt19937 random(1);
  constexpr uint8_t kBytes[] = {'a',  0x80, 0xBF, 0xC3, 0xE0, 0xA0,
                                0xED, 0xE2, 0xF0, 0x90, 0xF4, 0xFF};
  for (int round = 0; round < 20000; ++round) {
    std::string whole, pending, result;
    for (int i = 0; i < 12; ++i) {
      const char byte = static_cast<char>(kBytes[random() % std::size(kBytes)]);
      whole += byte;
      pending += byte;
      const size_t complete = pending.size() - IncompleteUtf8Suffix(pending);
      result += ReplaceInvalidUtf8(pending.substr(0, complete));
      pending.erase(0, complete);
    }
    result += ReplaceInvalidUtf8(pending);
    ASSERT_EQ(result, ReplaceInvalidUtf8(whole));
    ASSERT_EQ(FindInvalidUtf8(result), std::string::npos);
  }
}

TEST(Text, StripKnowsUnicodeWhiteSpace) {
  const std::string spaces =
      " \t\r\n\v\f\u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000";
  EXPECT_EQ(StripLeft(spaces + "a" + spaces), "a" + spaces);
  EXPECT_EQ(StripRight(spaces + "a" + spaces), spaces + "a");
  EXPECT_EQ(StripLeft(spaces), "");
  EXPECT_EQ(StripRight(spaces), "");
  for (const std::string_view other : {"\u180E", "\u200B", "\uFEFF", "\x1F"}) {
    EXPECT_EQ(StripLeft(other), other);
    EXPECT_EQ(StripRight(other), other);
  }
}

TEST(Text, AlphabetWritesEachByteAsItself) {
  EXPECT_EQ(BytesFromAlphabet("\u0120the\u010A"), " the\n");
  EXPECT_EQ(BytesFromAlphabet("\u00C3\u00A9"), "\u00E9");
  std::string alphabet, bytes;
  for (char32_t code_point = '!'; code_point < 0x144; ++code_point) {
    std::string letter;
    AppendUtf8(code_point, &letter);
    if (BytesFromAlphabet(letter)) alphabet += letter;
  }
  bytes = BytesFromAlphabet(alphabet).value();
  std::sort(bytes.begin(), bytes.end(), [](char a, char b) { return uint8_t(a) < uint8_t(b); });
  ASSERT_EQ(bytes.size(), 256u);
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(static_cast<uint8_t>(bytes[byte]), byte);
  for (const std::string_view other : {" ", "\n", "\u00AD", "\u0144", "\u2581"}) {
    EXPECT_EQ(BytesFromAlphabet(other), std::nullopt);
  }
}

TEST(Text, StringTableReturnsWhatWasAppended) {
  StringTable table;
  for (int i = 0; i < 1000; ++i) table.Append(std::string(i % 7, 'a' + i % 26));
  ASSERT_EQ(table.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(table[i], std::string(i % 7, 'a' + i % 26));
}

}  // namespace
}  // namespace everlong
