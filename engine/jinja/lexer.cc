#include "engine/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "engine/jinja/unicode.h"
#include "engine/jinja/value.h"
#include "engine/text.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

bool IsAsciiDigit(char c) {
  return c >= '0' && c <= '9';
}

// With one kind of line end and without the last one, which Jinja drops.
std::string NormalizeLines(std::string_view source) {
  std::string lines;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      lines += source[i];
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      lines += '\n';
    }
  }
  if (lines.ends_with('\n')) lines.pop_back();
  return lines;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : lines_(NormalizeLines(source)), source_(lines_) {}

  std::vector<Token> Run() {
    while (at_ < source_.size()) LexTextAndTag();
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return source_.substr(at_); }

  void Advance(size_t count) {
    const std::string_view passed = source_.substr(at_, count);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    at_ += passed.size();
  }

  void Add(TokenKind kind, std::string_view text) {
    tokens_.push_back({kind, std::string(text), line_});
  }

  // Text up to the next tag, then that tag.
  void LexTextAndTag() {
    const size_t tag = FindTag();
    const std::string_view text = source_.substr(at_, tag - at_);
    if (tag == source_.size()) {
      Add(TokenKind::kText, text);
      Advance(text.size());
      return;
    }
    const char type = source_[tag + 1];
    const char sign = SignAt(tag + 2);
    AddText(text, sign, type != '{');
    Advance(text.size() + (sign == ' ' ? 2 : 3));
    if (type == '#') {
      LexComment();
    } else if (type == '{') {
      LexTag(TokenKind::kOutputBegin, TokenKind::kOutputEnd, "}}");
    } else if (!LexRaw()) {
      LexTag(TokenKind::kBlockBegin, TokenKind::kBlockEnd, "%}");
    }
  }

  size_t FindTag() const {
    for (size_t at = source_.find('{', at_); at != std::string_view::npos;
         at = source_.find('{', at + 1)) {
      const char next = at + 1 < source_.size() ? source_[at + 1] : ' ';
      if (next == '%' || next == '{' || next == '#') return at;
    }
    return source_.size();
  }

  // What a tag does to white space: '-' takes it, '+' keeps it, ' ' leaves it to the defaults.
  char SignAt(size_t at) const {
    const char c = at < source_.size() ? source_[at] : ' ';
    return c == '-' || c == '+' ? c : ' ';
  }

  // `text` stands before a tag. lstrip_blocks takes blanks between a line's start and the tag.
  void AddText(std::string_view text, char sign, bool strips_indent) {
    if (sign == '-') {
      text = TrimEnd(text);
    } else if (sign == ' ' && strips_indent) {
      const size_t line = text.rfind('\n') + 1;
      const bool from_line_start = line > 0 || at_line_start_;
      if (from_line_start && TrimStart(text.substr(line)).empty()) text = text.substr(0, line);
    }
    if (!text.empty()) Add(TokenKind::kText, text);
  }

  // White space behind a tag: '-' takes it all, trim_blocks takes one line end.
  void EndTag(char sign, bool trims) {
    const std::string_view rest = Rest();
    size_t count = 0;
    if (sign == '-') {
      count = rest.size() - TrimStart(rest).size();
    } else if (sign == ' ' && trims && rest.starts_with('\n')) {
      count = 1;
    }
    at_line_start_ = count > 0 && rest[count - 1] == '\n';
    Advance(count);
  }

  void LexComment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) throw Error("a comment is not closed", line_);
    const char sign = end > at_ ? SignAt(end - 1) : ' ';
    Advance(end + 2 - at_);
    EndTag(sign, true);
  }

  void SkipSpace() { Advance(Rest().size() - TrimStart(Rest()).size()); }

  // Offset behind `{% name`, from `at` behind the `{%` and its sign; 0 where the name is another.
  size_t EndOfName(size_t at, std::string_view name) const {
    const std::string_view rest = TrimStart(source_.substr(at));
    return rest.starts_with(name) ? source_.size() - rest.size() + name.size() : 0;
  }

  // Behind `{%`: {% raw %} ... {% endraw %}, whose inside is text.
  bool LexRaw() {
    const size_t name_end = EndOfName(at_, "raw");
    if (name_end == 0) return false;
    const std::string_view close = TrimStart(source_.substr(name_end));
    const char sign = close.starts_with("-%}") ? '-' : ' ';
    if (sign == ' ' && !close.starts_with("%}")) return false;
    const int line = line_;
    Advance(source_.size() - close.size() - at_ + (sign == '-' ? 3 : 2));
    EndTag(sign, false);
    for (size_t tag = source_.find("{%", at_); tag != std::string_view::npos;
         tag = source_.find("{%", tag + 1)) {
      if (LexEndOfRaw(tag)) return true;
    }
    throw Error("a raw block is not closed", line);
  }

  // Ends the raw block where the tag at `tag` is {% endraw %}.
  bool LexEndOfRaw(size_t tag) {
    const char begin_sign = SignAt(tag + 2);
    const size_t name_end = EndOfName(tag + (begin_sign == ' ' ? 2 : 3), "endraw");
    if (name_end == 0) return false;
    const std::string_view close = TrimStart(source_.substr(name_end));
    const char sign = SignAt(source_.size() - close.size());
    if (!close.substr(sign == ' ' ? 0 : 1).starts_with("%}")) return false;
    AddText(source_.substr(at_, tag - at_), begin_sign, true);
    Advance(source_.size() - close.size() - at_ + (sign == ' ' ? 2 : 3));
    EndTag(sign, true);
    return true;
  }

  void LexTag(TokenKind begin, TokenKind end, std::string_view close) {
    const int line = line_;
    Add(begin, "");
    brackets_.clear();
    for (SkipSpace(); at_ < source_.size(); SkipSpace()) {
      const char sign = SignAt(at_);
      const bool signed_close = (sign == '-' || (sign == '+' && end == TokenKind::kBlockEnd)) &&
                                Rest().substr(1).starts_with(close);
      if (brackets_.empty() && (signed_close || Rest().starts_with(close))) {
        Add(end, "");
        Advance(signed_close ? 3 : 2);
        EndTag(signed_close ? sign : ' ', end == TokenKind::kBlockEnd);
        return;
      }
      LexToken();
    }
    throw Error("a tag is not closed", line);
  }

  void LexToken() {
    const char c = source_[at_];
    if (IsAsciiDigit(c)) {
      LexNumber();
    } else if (c == '"' || c == '\'') {
      LexString();
    } else if (const size_t length = NameLength(); length > 0) {
      Take(TokenKind::kName, length);
    } else {
      LexOperator();
    }
  }

  void Take(TokenKind kind, size_t length) {
    Add(kind, source_.substr(at_, length));
    Advance(length);
  }

  size_t NameLength() const {
    size_t end = at_;
    while (end < source_.size()) {
      size_t next = end;
      const char32_t c = NextCodePoint(source_, &next);
      if (c != U'_' && !IsAlphabetic(c) && !IsDigit(c)) break;
      end = next;
    }
    return end - at_;
  }

  // Offset behind digits with underscores between them, from `at`, which must be at one.
  size_t EndOfDigits(size_t at) const {
    const auto is_digit = [&](size_t i) { return i < source_.size() && IsAsciiDigit(source_[i]); };
    while (is_digit(at) || (at < source_.size() && source_[at] == '_' && is_digit(at + 1))) ++at;
    return at;
  }

  // Behind a dot a number is an index: "a.0.1" has no float.
  void LexNumber() {
    const bool is_index = tokens_.back().kind == TokenKind::kOperator && tokens_.back().text == ".";
    const size_t whole = EndOfDigits(at_);
    size_t end = is_index ? whole : EndOfFloat(whole);
    Take(end == whole ? TokenKind::kInteger : TokenKind::kFloat, end - at_);
    std::string& digits = tokens_.back().text;
    std::erase(digits, '_');
    if (end == whole && digits.size() > 1 && digits[0] == '0' &&
        digits.find_first_not_of('0') != std::string::npos) {
      throw Error(fmt::format("the number {} begins with a zero", digits), line_);
    }
  }

  // Offset behind a fraction and an exponent, if they are there.
  size_t EndOfFloat(size_t end) const {
    const auto at = [&](size_t i) { return i < source_.size() ? source_[i] : ' '; };
    if (at(end) == '.' && IsAsciiDigit(at(end + 1))) end = EndOfDigits(end + 1);
    if (at(end) != 'e' && at(end) != 'E') return end;
    const size_t exponent = end + (at(end + 1) == '+' || at(end + 1) == '-' ? 2 : 1);
    return IsAsciiDigit(at(exponent)) ? EndOfDigits(exponent) : end;
  }

  void LexString() {
    const char quote = source_[at_];
    const int line = line_;
    std::string text;
    Advance(1);
    while (at_ < source_.size() && source_[at_] != quote) {
      const size_t end =
          std::min(source_.find_first_of(quote == '"' ? "\\\"" : "\\'", at_), source_.size());
      text += source_.substr(at_, end - at_);
      Advance(end - at_);
      if (Rest().starts_with('\\')) LexEscape(&text);
    }
    if (at_ == source_.size()) throw Error("a string is not closed", line);
    Advance(1);
    tokens_.push_back({TokenKind::kString, std::move(text), line});
  }

  // A backslash and what belongs to it, as Python reads them.
  void LexEscape(std::string* text) {
    constexpr std::string_view kLetters = "abfnrtv\\'\"\n";
    constexpr std::array<std::string_view, 11> kMeanings = {"\a", "\b", "\f", "\n", "\r", "\t",
                                                            "\v", "\\", "'",  "\"", ""};
    const char letter = at_ + 1 < source_.size() ? source_[at_ + 1] : ' ';
    const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    if (const size_t known = kLetters.find(letter); known != std::string_view::npos) {
      *text += kMeanings[known];
      Advance(2);
    } else if (digits > 0) {
      LexCode(2, digits, 16, text);
    } else if (letter >= '0' && letter <= '7') {
      const std::string_view octal = Rest().substr(1, 3);
      LexCode(1, std::min(octal.find_first_not_of("01234567"), octal.size()), 8, text);
    } else if (letter == 'N') {
      throw Error("\\N{...} is not supported", line_);
    } else {
      *text += '\\';
      Advance(1);
    }
  }

  // A character by its number, whose digits are `offset` behind the backslash.
  void LexCode(size_t offset, size_t num_digits, int base, std::string* text) {
    const std::string digits(Rest().substr(offset, num_digits));
    if (digits.size() < num_digits ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      throw Error(fmt::format("an escape needs {} digits, not '{}'", num_digits, digits), line_);
    }
    const auto code = static_cast<char32_t>(std::stoul(digits, nullptr, base));
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      throw Error(fmt::format("the escape '{}' is no character", digits), line_);
    }
    AppendUtf8(code, text);
    Advance(offset + num_digits);
  }

  void LexOperator() {
    constexpr std::array<std::string_view, 6> kPairs = {"==", "!=", "<=", ">=", "//", "**"};
    const bool is_pair =
        std::find(kPairs.begin(), kPairs.end(), Rest().substr(0, 2)) != kPairs.end();
    const char c = source_[at_];
    if (!is_pair && std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      size_t end = 0;
      throw Error(fmt::format("unexpected character '{}'", NextCharacter(Rest(), &end)), line_);
    }
    if (!is_pair) MatchBracket(c);
    Take(TokenKind::kOperator, is_pair ? 2 : 1);
  }

  void MatchBracket(char c) {
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kClose = ")]}";
    if (const size_t open = kOpen.find(c); open != std::string_view::npos) {
      brackets_ += kClose[open];
    } else if (kClose.find(c) != std::string_view::npos) {
      if (brackets_.empty() || brackets_.back() != c) {
        throw Error(fmt::format("'{}' closes nothing", c), line_);
      }
      brackets_.pop_back();
    }
  }

  const std::string lines_;
  const std::string_view source_;  // views lines_
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::string brackets_;  // those that close the open ones of a tag
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Lex(std::string_view source) {
  return Lexer(source).Run();
}

}  // namespace everlong::jinja
