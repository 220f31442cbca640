// Template source to tokens, with Jinja's rules for white space around tags applied.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace everlong::jinja {

enum class TokenKind {
  kText,        // outside tags
  kBlockBegin,  // {%
  kBlockEnd,
  kOutputBegin,  // {{
  kOutputEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;  // strings: unescaped
  int line;
};

// Throws Error with the line.
std::vector<Token> Lex(std::string_view source);

}  // namespace everlong::jinja
