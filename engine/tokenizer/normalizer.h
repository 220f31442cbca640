// Rewrites text before it is tokenized: the "normalizer" of a tokenizer.json.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace everlong {

// Immutable after construction.
class Normalizer {
 public:
  // NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace or a Sequence of them.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json& document);

  bool empty() const { return steps_.empty(); }

  // `text` must be valid UTF-8 and is so afterwards. Fails only where a Pattern does.
  absl::Status Apply(std::string* text) const;

 private:
  std::vector<std::function<absl::Status(std::string* text)>> steps_;
};

}  // namespace everlong
