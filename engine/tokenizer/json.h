// Reads the content of a tokenizer.json. The vocabulary and the merges, hundreds of thousands of
// short strings, go straight into tables; only the small rest becomes a document.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text.h"
#include "nlohmann/json.hpp"

namespace everlong {

// Ids index tables, so that a damaged file must not ask for huge ones.
inline constexpr int64_t kMaxVocabSize = 1 << 22;

struct TokenizerJson {
  StringTable tokens;        // the keys of model.vocab, in the file's order
  std::vector<int32_t> ids;  // their values, in [0, kMaxVocabSize)
  StringTable merges;        // left and right part alternately, in order of rank
  nlohmann::json rest;       // the document, an object, without model.vocab and model.merges
};

// INVALID_ARGUMENT where `json` is not JSON or where the vocabulary or the merges have another
// form.
absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json);

// The member, or null where it is absent or `component` is no object.
const nlohmann::json& Member(const nlohmann::json& component, const char* name);

// Typed members of a component such as {"type": "Strip", ...}. Errors name `component`, the member
// and the type that it should have. With a `fallback`, an absent or null member has this value.
absl::StatusOr<std::string> StringMember(const nlohmann::json& component, const char* name);
absl::StatusOr<std::string> StringMember(const nlohmann::json& component, const char* name,
                                         std::string fallback);
absl::StatusOr<bool> BoolMember(const nlohmann::json& component, const char* name, bool fallback);
absl::StatusOr<int64_t> IntMember(const nlohmann::json& component, const char* name,
                                  int64_t fallback);
absl::StatusOr<std::vector<nlohmann::json>> ArrayMember(const nlohmann::json& component,
                                                        const char* name);

// A normalizer, pre-tokenizer, decoder or post-processor.
struct Component {
  std::string type;
  nlohmann::json json;  // an object
};

// The member `kind` of `document` without the Sequences, whose members are called `list`: what it
// applies in order. Empty where it is absent or null.
absl::StatusOr<std::vector<Component>> ComponentsMember(const nlohmann::json& document,
                                                        const char* kind, const char* list);

absl::Status UnsupportedComponent(std::string_view kind, std::string_view type);

}  // namespace everlong
