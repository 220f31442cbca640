// Geometry of a model from a GGUF file's metadata and tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/gguf.h"
#include "engine/model_config.h"
#include "engine/tokenizer/gguf.h"

namespace everlong {

struct GgufModel {
  ModelConfig config;
  // Rows of the query and key projections stand in the order in which neighbours are rotated
  // together (2 i and 2 i + 1 of a head), where Hugging Face's rotate halves (i and i + head_dim /
  // 2).
  bool rotates_neighbours = false;
};

// INVALID_ARGUMENT where an architecture, a kind of scaling or a value is not supported; the
// message names the key.
absl::StatusOr<GgufModel> ModelFromGguf(const GgufFile& file, const GgufTokenizer& tokenizer);

}  // namespace everlong
