#include "engine/jinja/lexer.h"

#include <array>
#include <cctype>

#include "engine/jinja/value.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

bool IsNameStart(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_';
}
bool IsDigit(char c) {
  return std::isdigit(static_cast<unsigned char>(c));
}
bool IsSpace(char c) {
  return std::isspace(static_cast<unsigned char>(c));
}

void AppendUtf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> Run() {
    while (at_ < source_.size()) LexText();
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  bool Looking(std::string_view text) const { return source_.compare(at_, text.size(), text) == 0; }

  void Advance(size_t count) {
    for (size_t i = 0; i < count; ++i) line_ += source_[at_ + i] == '\n' ? 1 : 0;
    at_ += count;
  }

  // Text up to the next tag, then that tag.
  void LexText() {
    const size_t begin = at_;
    size_t tag = begin;
    while (tag < source_.size() &&
           !(source_[tag] == '{' && tag + 1 < source_.size() &&
             (source_[tag + 1] == '%' || source_[tag + 1] == '{' || source_[tag + 1] == '#'))) {
      ++tag;
    }
    std::string text = source_.substr(begin, tag - begin);
    const int line = line_;
    Advance(tag - begin);
    const bool has_tag = tag < source_.size();
    const char type = has_tag ? source_[tag + 1] : ' ';
    const char sign = has_tag && tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (has_tag && sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.pop_back();
    } else if (has_tag && type != '{' && sign != '+') {
      StripIndent(text);
    }
    if (!text.empty()) tokens_.push_back({TokenKind::kText, text, line});
    if (!has_tag) return;
    Advance(sign == '-' || (sign == '+' && type != '{') ? 3 : 2);
    if (type == '#') {
      LexComment();
    } else {
      LexTag(type == '%');
    }
  }

  // lstrip_blocks: blanks between the start of a line and a block or comment.
  void StripIndent(std::string& text) const {
    const size_t newline = text.rfind('\n');
    const size_t start = newline == std::string::npos ? 0 : newline + 1;
    if (newline == std::string::npos && !at_line_start_) return;
    if (text.find_first_not_of(" \t\v\f", start) == std::string::npos) text.resize(start);
  }

  void LexComment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) throw Error("a comment is not closed", line_);
    const char sign = end > at_ ? source_[end - 1] : ' ';
    Advance(end - at_ + 2);
    AfterTag(sign, true);
  }

  // White space after a tag: '-' takes it all, trim_blocks takes one newline after blocks.
  void AfterTag(char sign, bool trims) {
    at_line_start_ = false;
    if (sign == '-') {
      while (at_ < source_.size() && IsSpace(source_[at_])) {
        at_line_start_ = source_[at_] == '\n';
        Advance(1);
      }
    } else if (trims && sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      Advance(1);
      at_line_start_ = true;
    }
  }

  void LexTag(bool block) {
    const size_t first = tokens_.size();
    const std::string_view close = block ? "%}" : "}}";
    tokens_.push_back({block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "", line_});
    int depth = 0;
    while (true) {
      while (at_ < source_.size() && IsSpace(source_[at_])) Advance(1);
      if (at_ >= source_.size()) throw Error("a tag is not closed", tokens_[first].line);
      const char c = source_[at_];
      const bool signed_close =
          (c == '-' || (c == '+' && block)) && source_.compare(at_ + 1, 2, close) == 0;
      if (depth == 0 && (signed_close || Looking(close))) {
        Advance(signed_close ? 3 : 2);
        tokens_.push_back({block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "", line_});
        const bool raw = block && tokens_.size() == first + 3 && tokens_[first + 1].text == "raw";
        AfterTag(signed_close ? c : ' ', block);
        if (raw) LexRaw(first);
        return;
      }
      LexToken(depth);
    }
  }

  // {% raw %} ... {% endraw %}: one text token.
  void LexRaw(size_t first) {
    tokens_.resize(first);
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      size_t name = tag + 2;
      const bool strip = name < source_.size() && source_[name] == '-';
      if (strip || (name < source_.size() && source_[name] == '+')) ++name;
      while (name < source_.size() && IsSpace(source_[name])) ++name;
      if (source_.compare(name, 6, "endraw") != 0) continue;
      const size_t end = source_.find("%}", name);
      if (end == std::string::npos) break;
      std::string text = source_.substr(at_, tag - at_);
      if (strip) {
        while (!text.empty() && IsSpace(text.back())) text.pop_back();
      } else {
        StripIndent(text);
      }
      if (!text.empty()) tokens_.push_back({TokenKind::kText, text, line_});
      Advance(end + 2 - at_);
      AfterTag(source_[end - 1], true);
      return;
    }
    throw Error("a raw block is not closed", line_);
  }

  void LexToken(int& depth) {
    const char c = source_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
      Push(TokenKind::kName, end - at_);
    } else if (IsDigit(c)) {
      LexNumber();
    } else if (c == '"' || c == '\'') {
      LexString(c);
    } else {
      LexOperator(depth);
    }
  }

  void Push(TokenKind kind, size_t length) {
    tokens_.push_back({kind, source_.substr(at_, length), line_});
    Advance(length);
  }

  void LexNumber() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && (IsDigit(source_[end]) || source_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '-' || source_[end + 1] == '+');
      if (end + 1 + sign < source_.size() && IsDigit(source_[end + 1 + sign])) {
        is_float = true;
        end += 1 + sign;
        digits();
      }
    }
    Push(is_float ? TokenKind::kFloat : TokenKind::kInteger, end - at_);
    std::erase(tokens_.back().text, '_');
  }

  void LexString(char quote) {
    const int line = line_;
    Advance(1);
    std::string text;
    while (at_ < source_.size() && source_[at_] != quote) {
      if (source_[at_] == '\\' && at_ + 1 < source_.size()) {
        LexEscape(text);
      } else {
        text += source_[at_];
        Advance(1);
      }
    }
    if (at_ >= source_.size()) throw Error("a string is not closed", line);
    Advance(1);
    tokens_.push_back({TokenKind::kString, text, line});
  }

  void LexEscape(std::string& text) {
    const char c = source_[at_ + 1];
    constexpr std::string_view kFrom = "nrtbfav0\\'\"";
    constexpr std::string_view kTo{"\n\r\t\b\f\a\v\0\\'\"", 11};
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
      const std::string hex = source_.substr(at_ + 2, digits);
      if (hex.size() < digits ||
          hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
        throw Error(fmt::format("\\{} needs {} hexadecimal digits", c, digits), line_);
      }
      const unsigned long code = std::stoul(hex, nullptr, 16);
      if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
        throw Error(fmt::format("\\{}{} is no character", c, hex), line_);
      }
      AppendUtf8(static_cast<uint32_t>(code), text);
      Advance(2 + digits);
      return;
    }
    const size_t known = kFrom.find(c);
    if (c == '\n') {
      // A backslash at the end of a line continues the string on the next.
    } else if (known != std::string_view::npos) {
      text += kTo[known];
    } else {
      text += {'\\', c};
    }
    Advance(2);
  }

  void LexOperator(int& depth) {
    constexpr std::array<std::string_view, 8> kPairs = {"==", "!=", "<=", ">=", "//", "**"};
    for (const std::string_view pair : kPairs) {
      if (!pair.empty() && Looking(pair)) return Push(TokenKind::kOperator, 2);
    }
    const char c = source_[at_];
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      throw Error(fmt::format("unexpected character '{}'", c), line_);
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (depth < 0) throw Error(fmt::format("'{}' closes nothing", c), line_);
    Push(TokenKind::kOperator, 1);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Lex(std::string_view source) {
  return Lexer(source).Run();
}

}  // namespace everlong::jinja
