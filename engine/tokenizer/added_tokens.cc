#include "engine/tokenizer/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/status.h"
#include "engine/text.h"
#include "engine/tokenizer/json.h"
#include "engine/tokenizer/pattern.h"

namespace everlong {
namespace {

using nlohmann::json;

absl::StatusOr<AddedToken> AddedTokenFromJson(const json& entry, const Normalizer& normalizer) {
  AddedToken token;
  ASSIGN_OR_RETURN(token.content, StringMember(entry, "content"));
  ASSIGN_OR_RETURN(const int64_t id, IntMember(entry, "id", -1));
  ASSIGN_OR_RETURN(token.single_word, BoolMember(entry, "single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, BoolMember(entry, "lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, BoolMember(entry, "rstrip", false));
  ASSIGN_OR_RETURN(token.normalized, BoolMember(entry, "normalized", false));
  ASSIGN_OR_RETURN(token.special, BoolMember(entry, "special", false));
  if (token.content.empty()) return absl::InvalidArgumentError("the content is empty");
  if (id < 0 || id >= kMaxVocabSize) {
    return absl::InvalidArgumentError(
        fmt::format("\"{}\" has id {}, outside [0, {})", token.content, id, kMaxVocabSize));
  }
  token.id = static_cast<int32_t>(id);
  token.text = token.content;
  if (token.normalized) RETURN_IF_ERROR(normalizer.Apply(&token.text));
  return token;
}

// Whether `code_point` is part of a word.
bool IsWord(std::string_view code_point) {
  static const Pattern* const kWord =
      new Pattern(Pattern::Regex(fmt::format("[{}]", kWordClass)).value());  // never destroyed
  bool result = false;
  const absl::Status status = kWord->Split(code_point, [&](std::string_view, bool is_match) {
    result = is_match;
    return absl::OkStatus();
  });
  return status.ok() && result;
}

// Whether neither what ends `before` nor what begins `after` is part of a word.
bool IsSingleWord(std::string_view before, std::string_view after) {
  return (before.empty() || !IsWord(before.substr(LastCodePointOffset(before)))) &&
         (after.empty() || !IsWord(after.substr(0, Utf8Length(after))));
}

}  // namespace

absl::StatusOr<std::vector<AddedToken>> AddedTokensFromJson(const json& document,
                                                            const Normalizer& normalizer) {
  std::vector<AddedToken> tokens;
  if (!document.contains("added_tokens")) return tokens;
  ASSIGN_OR_RETURN(const std::vector<json> entries, ArrayMember(document, "added_tokens"));
  for (const json& entry : entries) {
    absl::StatusOr<AddedToken> token = AddedTokenFromJson(entry, normalizer);
    if (!token.ok()) {
      return absl::InvalidArgumentError(fmt::format("added_tokens[{}]: {}", tokens.size(),
                                                    std::string(token.status().message())));
    }
    tokens.push_back(*std::move(token));
  }
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_at_{-1} {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint64_t node = 0;
    for (const char c : tokens_[i].text) {
      const uint64_t edge = node << 8 | static_cast<uint8_t>(c);
      const auto [child, is_new] = children_.emplace(edge, token_at_.size());
      if (is_new) token_at_.push_back(-1);
      node = child->second;
    }
    // The normalizer may have left nothing.
    if (node == 0) continue;
    token_at_[node] = static_cast<int32_t>(i);
    begins_[static_cast<uint8_t>(tokens_[i].text[0])] = true;
  }
}

const AddedToken* AddedTokenFinder::Find(std::string_view text) const {
  const AddedToken* longest = nullptr;
  uint64_t node = 0;
  for (const char c : text) {
    const auto child = children_.find(node << 8 | static_cast<uint8_t>(c));
    if (child == children_.end()) break;
    node = child->second;
    if (token_at_[node] >= 0) longest = &tokens_[token_at_[node]];
  }
  return longest;
}

absl::Status AddedTokenFinder::Split(std::string_view text, bool parse_special, Visit visit) const {
  size_t done = 0;  // up to here `text` has been visited
  for (size_t at = 0; at < text.size();) {
    const bool may_begin = begins_[static_cast<uint8_t>(text[at])];
    const AddedToken* const token = may_begin ? Find(text.substr(at)) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    // A token that does not count hides others in its midst all the same.
    size_t begin = at, end = at += token->text.size();
    if (token->special && !parse_special) continue;
    if (token->single_word && !IsSingleWord(text.substr(0, begin), text.substr(end))) continue;
    if (token->lstrip) {
      begin = std::max(begin, done);
      begin = done + StripRight(text.substr(done, begin - done)).size();
    }
    if (token->rstrip) end = text.size() - StripLeft(text.substr(end)).size();
    if (begin > done) RETURN_IF_ERROR(visit(text.substr(done, begin - done), nullptr));
    // Nothing is left of a token that is white space which another has taken along.
    if (begin < end) RETURN_IF_ERROR(visit(text.substr(begin, end - begin), token));
    done = end;
  }
  return done < text.size() ? visit(text.substr(done), nullptr) : absl::OkStatus();
}

}  // namespace everlong
