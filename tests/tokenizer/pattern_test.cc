#include "engine/tokenizer/pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace everlong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Parts with matches in brackets.
std::vector<std::string> Split(const Pattern& pattern, std::string_view text) {
  std::vector<std::string> parts;
  const absl::Status status = pattern.Split(text, [&](std::string_view part, bool is_match) {
    parts.emplace_back(part);
    if (is_match) parts.back() = std::string(1, '[').append(part).append(1, ']');
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return parts;
}

std::vector<std::string> Split(std::string_view expression, std::string_view text) {
  const auto pattern = Pattern::Regex(expression);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  return Split(*pattern, text);
}

TEST(Pattern, VisitsMatchesAndWhatLiesBetween) {
  EXPECT_THAT(Split(R"(\p{N}+)", "a12b3"), ElementsAre("a", "[12]", "b", "[3]"));
  EXPECT_THAT(Split(R"(\p{N})", "12"), ElementsAre("[1]", "[2]"));
  EXPECT_THAT(Split("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(Split("x", ""), ElementsAre());
  EXPECT_THAT(Split(*Pattern::Literal(".."), "a...b.."), ElementsAre("a", "[..]", ".b", "[..]"));
}

TEST(Pattern, EmptyMatchesCountWhereNoMatchEnds) {
  EXPECT_THAT(Split("(?=B)", "aBcB"), ElementsAre("a", "[]", "Bc", "[]", "B"));
  EXPECT_THAT(Split("b*", "ab\u20AC"), ElementsAre("[]", "a", "[b]", "\u20AC", "[]"));
}

TEST(Pattern, MeansWhatOnigurumaMeans) {
  // U+180E is no white space.
  EXPECT_THAT(Split(R"(\s)", "a\u180E\u00A0"), ElementsAre("a\u180E", "[\u00A0]"));
  EXPECT_THAT(Split(R"([^\S\n]+)", " \n\u180E\u3000"), ElementsAre("[ ]", "\n\u180E", "[\u3000]"));
  // Lines end at \n alone and at each of them.
  EXPECT_THAT(Split("^.", "a\r\nb"), ElementsAre("[a]", "\r\n", "[b]"));
  EXPECT_THAT(Split("(?i:'S)", "'s'S'\u017F"), ElementsAre("['s]", "['S]", "['\u017F]"));
  EXPECT_THAT(Split(R"([]a]|[^]b]c)", "]xca"), ElementsAre("[]]", "[xc]", "[a]"));
  EXPECT_THAT(Split(R"([[:digit:]\]]+)", "a1]"), ElementsAre("a", "[1]]"));
}

TEST(Pattern, NamesWhatItDoesNotSupport) {
  const std::pair<const char*, const char*> unsupported[] = {
      {R"(a\w)", R"("\w" at byte 1)"},
      {R"([\W])", R"("\W" at byte 1)"},
      {R"(\h+)", R"("\h" at byte 0)"},
      {R"(a\Kb)", R"("\K" at byte 1)"},
      {"[a[bc]]", R"("[" at byte 2)"},
      {"[a-z&&[^b]]", R"("&" at byte 4)"},
      {"x{1,3}+", R"("}" at byte 5)"},
      {R"(a\)", R"("\" at byte 1)"},
      {"(a", "missing closing parenthesis"},
      {R"(\C)", "\\C"},
      {"(((a{1000}){1000}){1000})", "too large"},
  };
  for (const auto& [expression, message] : unsupported) {
    const auto pattern = Pattern::Regex(expression);
    ASSERT_FALSE(pattern.ok()) << expression;
    EXPECT_THAT(std::string(pattern.status().message()), HasSubstr(expression));
    EXPECT_THAT(std::string(pattern.status().message()), HasSubstr(message));
  }
  EXPECT_FALSE(Pattern::Literal("").ok());
  for (const char* component : {R"({"pattern": 3})", R"({})", R"({"pattern": {"Glob": "*"}})",
                                R"({"pattern": {"String": 1}})", "[]"}) {
    EXPECT_FALSE(Pattern::FromJson(nlohmann::json::parse(component)).ok()) << component;
  }
}

TEST(Pattern, EndlessBacktrackingIsAnError) {
  const auto pattern = Pattern::Regex("(?:a+)+[bc]");
  ASSERT_TRUE(pattern.ok());
  const absl::Status status = pattern->Split(
      std::string(100'000, 'a'), [](std::string_view, bool) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(?:a+)+[bc]"));
}

TEST(Pattern, DeepNestingIsAnError) {
  const auto pattern = Pattern::Regex("(?:a|b)*?c");
  ASSERT_TRUE(pattern.ok());
  const absl::Status status = pattern->Split(
      std::string(3'000'000, 'a'), [](std::string_view, bool) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST(Pattern, ErrorsOfTheVisitorEndTheSplit) {
  int num_visits = 0;
  const absl::Status status =
      Pattern::Literal("a")->Split("abab", [&](std::string_view, bool is_match) {
        ++num_visits;
        return is_match ? absl::OkStatus() : absl::AbortedError("enough");
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(num_visits, 2);
}

TEST(Pattern, Replaces) {
  std::string text = "a  b c";
  ASSERT_TRUE(Pattern::Literal(" ")->Replace("\u2581", &text).ok());
  EXPECT_EQ(text, "a\u2581\u2581b\u2581c");
  ASSERT_TRUE(Pattern::Regex("\u2581+")->Replace("", &text).ok());
  EXPECT_EQ(text, "abc");
}

}  // namespace
}  // namespace everlong
