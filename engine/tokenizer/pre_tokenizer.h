// Cuts text into the words that are encoded one by one: the "pre_tokenizer" of a tokenizer.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/pattern.h"
#include "nlohmann/json.hpp"

namespace everlong {

// GPT-2's words: contractions, then letters, numbers or other signs behind at most one space, then
// white space.
inline constexpr std::string_view kByteLevelWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What becomes of the matches at which a text is cut.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

enum class SpacePrefix { kNever, kAtStart, kAlways };

// Rewrites a text, then cuts it.
struct PreTokenizerStep {
  std::string space;  // what spaces become and what `prefix` puts in front; empty: neither
  SpacePrefix prefix = SpacePrefix::kNever;
  std::optional<Pattern> pattern;  // none: the text stays whole
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what `pattern` matches and the rest change places
};

// Immutable after construction.
class PreTokenizer {
 public:
  // ByteLevel, Digits, Metaspace, Punctuation, Split, Whitespace, WhitespaceSplit or a Sequence of
  // them, where ByteLevel can only be the last.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& document);

  // Whether the model encodes bytes and not code points.
  bool byte_level() const { return byte_level_; }

  using Emit = absl::FunctionRef<void(std::string_view word)>;

  // Calls `emit` with the words of `text`, valid UTF-8, in order; none is empty. `at_start`: the
  // text that the user gave begins with `text`. Fails only where a Pattern does.
  absl::Status Split(std::string_view text, bool at_start, Emit emit) const {
    return SplitFrom(0, text, at_start, emit);
  }

 private:
  absl::Status SplitFrom(size_t index, std::string_view text, bool at_start, Emit emit) const;

  std::vector<PreTokenizerStep> steps_;
  bool byte_level_ = false;
};

}  // namespace everlong
