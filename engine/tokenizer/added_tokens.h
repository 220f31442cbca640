// Tokens that are found in the text before it is cut into words: the "added_tokens" of a
// tokenizer.json, special and not.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/normalizer.h"
#include "nlohmann/json.hpp"

namespace everlong {

struct AddedToken {
  int32_t id = 0;            // in [0, kMaxVocabSize)
  std::string content;       // not empty
  std::string text;          // what stands for it: the content, normalized where `normalized`
  bool single_word = false;  // counts only where no letter or digit is next to it
  bool lstrip = false;       // takes along the white space before it
  bool rstrip = false;       // takes along the white space behind it
  bool normalized = false;   // is looked for in the normalized text, not in the user's
  bool special = false;      // steers the model, is no text
};

// The member "added_tokens" of `document`. INVALID_ARGUMENT where a content is empty.
absl::StatusOr<std::vector<AddedToken>> AddedTokensFromJson(const nlohmann::json& document,
                                                            const Normalizer& normalizer);

// Finds tokens in a text: of those that begin first the longest. Immutable after construction.
class AddedTokenFinder {
 public:
  AddedTokenFinder() : AddedTokenFinder(std::vector<AddedToken>()) {}
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  using Visit = absl::FunctionRef<absl::Status(std::string_view part, const AddedToken* token)>;

  // Visits all of `text`, valid UTF-8, in order: the tokens and what lies between them (`token` is
  // null), none empty. Special tokens are text like any other unless `parse_special`. Ends with the
  // first error of `visit`.
  absl::Status Split(std::string_view text, bool parse_special, Visit visit) const;

 private:
  // The longest token that `text` begins with, or null.
  const AddedToken* Find(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  // A trie over bytes; node 0 is the root.
  absl::flat_hash_map<uint64_t, int32_t> children_;  // node << 8 | byte -> node
  std::vector<int32_t> token_at_;                    // node -> index into tokens_, or -1
  std::array<bool, 256> begins_{};                   // bytes that a token begins with
};

}  // namespace everlong
