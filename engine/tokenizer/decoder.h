// What a token adds to decoded text: the "decoder" of a tokenizer.json.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace everlong {

// Immutable after construction. Supports what makes bytes of each token on its own, but for the
// first one of a text: nothing else can decode a stream.
class TokenDecoder {
 public:
  // ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip or a Sequence of them; without any,
  // tokens have a space between them.
  static absl::StatusOr<TokenDecoder> FromJson(const nlohmann::json& document);

  // The bytes of the token `content`, valid UTF-8, as the `first` of a text or another. Fails only
  // where a Pattern does.
  absl::StatusOr<std::string> Decode(std::string content, bool first) const;

 private:
  std::vector<std::function<absl::Status(bool first, std::string* text)>> steps_;
};

}  // namespace everlong
