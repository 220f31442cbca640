// The tokens of a template, read one after the other.
#pragma once

#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/lexer.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& Current() const { return tokens_[at_]; }
  int line() const { return Current().line; }
  // The current token, which is passed, except for the last.
  const Token& Next();

  bool At(TokenKind kind) const { return Current().kind == kind; }
  bool At(TokenKind kind, std::string_view text) const {
    return At(kind) && Current().text == text;
  }
  bool AtName(std::string_view name) const { return At(TokenKind::kName, name); }
  bool AtOperator(std::string_view text) const { return At(TokenKind::kOperator, text); }
  bool AtAnyName(std::initializer_list<std::string_view> names) const;
  // Whether the token behind the current one is that.
  bool IsFollowedBy(TokenKind kind, std::string_view text) const;

  // Pass the current token where it is that.
  bool TakeName(std::string_view name) { return Take(TokenKind::kName, name); }
  bool TakeOperator(std::string_view text) { return Take(TokenKind::kOperator, text); }

  // Pass the current token; Error where it is another.
  const Token& Expect(TokenKind kind, std::string_view what);
  void ExpectName(std::string_view name);
  void ExpectOperator(std::string_view text);

  // Throws Error with the current line.
  [[noreturn]] void Fail(std::string_view message) const;
  [[noreturn]] void FailUnexpected(std::string_view expected) const;

 private:
  friend class Depth;

  bool Take(TokenKind kind, std::string_view text);

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

// One level of the parser's recursion; Error where there are too many.
class Depth {
 public:
  static constexpr int kMax = 100;

  explicit Depth(TokenStream* tokens);
  ~Depth() { --tokens_->depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  TokenStream* const tokens_;
};

}  // namespace everlong::jinja
