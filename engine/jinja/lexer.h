// Template source to tokens, with Jinja's rules for white space around tags applied
// (trim_blocks and lstrip_blocks, as transformers sets them).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace everlong::jinja {

enum class TokenKind : uint8_t {
  kText,         // outside tags
  kBlockBegin,   // {%
  kBlockEnd,     // %}
  kOutputBegin,  // {{
  kOutputEnd,    // }}
  kName,
  kString,  // unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;  // counted from 1
};

// `source` is valid UTF-8. The last token is kEnd. Throws Error with the line.
std::vector<Token> Lex(std::string_view source);

}  // namespace everlong::jinja
