// Special tokens around a text: the "post_processor" of a tokenizer.json.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace everlong {

struct SpecialFrame {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

// ByteLevel, which adds nothing, TemplateProcessing or a Sequence of them. Ids are in
// [0, vocab_size).
absl::StatusOr<SpecialFrame> SpecialFrameFromJson(const nlohmann::json& document,
                                                  int64_t vocab_size);

}  // namespace everlong
