// What normalizers and pre-tokenizers look for in a text: a string or a regular expression in the
// syntax of Hugging Face tokenizers (Oniguruma's Ruby syntax), run by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

struct pcre2_real_code_8;

namespace everlong {

// Immutable; copies share the compiled expression.
class Pattern {
 public:
  // `text` must not be empty.
  static absl::StatusOr<Pattern> Literal(std::string text);

  // Constructs that mean something else in PCRE2 are named in the error.
  static absl::StatusOr<Pattern> Regex(std::string_view expression);

  // The member "pattern" of `component`: {"String": text} or {"Regex": expression}.
  static absl::StatusOr<Pattern> FromJson(const nlohmann::json& component);

  using Visit = absl::FunctionRef<absl::Status(std::string_view part, bool is_match)>;

  // Visits all of `text`, which is valid UTF-8, in order: the matches, which may be empty, and what
  // lies between them. Ends with the first error of `visit`. INVALID_ARGUMENT where a match takes
  // more steps or memory than the limits allow.
  absl::Status Split(std::string_view text, Visit visit) const;

  // Puts `content` in the place of each match in `text`, which is valid UTF-8.
  absl::Status Replace(std::string_view content, std::string* text) const;

 private:
  struct Range {
    size_t begin;
    size_t end;
  };

  Pattern(std::string source, std::shared_ptr<const pcre2_real_code_8> code)
      : source_(std::move(source)), code_(std::move(code)) {}

  // The first match from `offset` on; begin is npos where there is none.
  absl::StatusOr<Range> Find(std::string_view text, size_t offset) const;

  std::string source_;                             // as in the file
  std::shared_ptr<const pcre2_real_code_8> code_;  // null: source_ is the string to find
};

// What words are made of (Unicode Technical Standard 18, annex C), for a character class.
inline constexpr std::string_view kWordClass = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control})";

}  // namespace everlong
