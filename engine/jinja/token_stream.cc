#include "engine/jinja/token_stream.h"

#include <algorithm>

#include "fmt/format.h"

namespace everlong::jinja {
namespace {

std::string Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
    case TokenKind::kEnd:
      return "the end of the template";
    case TokenKind::kBlockBegin:
      return "'{%'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kOutputBegin:
      return "'{{'";
    case TokenKind::kOutputEnd:
      return "'}}'";
    default:
      return fmt::format("'{}'", token.text);
  }
}

}  // namespace

const Token& TokenStream::Next() {
  const Token& token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool TokenStream::AtAnyName(std::initializer_list<std::string_view> names) const {
  return std::any_of(names.begin(), names.end(), [this](auto name) { return AtName(name); });
}

bool TokenStream::IsFollowedBy(TokenKind kind, std::string_view text) const {
  return at_ + 1 < tokens_.size() && tokens_[at_ + 1].kind == kind && tokens_[at_ + 1].text == text;
}

bool TokenStream::Take(TokenKind kind, std::string_view text) {
  if (!At(kind, text)) return false;
  Next();
  return true;
}

const Token& TokenStream::Expect(TokenKind kind, std::string_view what) {
  if (!At(kind)) FailUnexpected(what);
  return Next();
}

void TokenStream::ExpectName(std::string_view name) {
  if (!TakeName(name)) FailUnexpected(fmt::format("'{}'", name));
}

void TokenStream::ExpectOperator(std::string_view text) {
  if (!TakeOperator(text)) FailUnexpected(fmt::format("'{}'", text));
}

void TokenStream::Fail(std::string_view message) const {
  throw Error(std::string(message), line());
}

void TokenStream::FailUnexpected(std::string_view expected) const {
  Fail(fmt::format("expected {}, got {}", expected, Describe(Current())));
}

Depth::Depth(TokenStream* tokens) : tokens_(tokens) {
  if (tokens->depth_ == kMax) {
    tokens->Fail(fmt::format("more than {} tags or expressions inside each other", kMax));
  }
  ++tokens->depth_;
}

}  // namespace everlong::jinja
