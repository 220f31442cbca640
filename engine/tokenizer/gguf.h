// The tokenizer that a GGUF file's metadata describes, as the tokenizer.json that it was made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/gguf.h"

namespace everlong {

struct GgufTokenizer {
  std::string json;  // the content of a tokenizer.json
  int64_t vocab_size = 0;
  std::vector<int32_t> bos_ids;  // none or one
  std::vector<int32_t> eos_ids;  // any ends a generation
};

// Models "gpt2" (byte-level BPE; tokenizer.ggml.pre names what cuts words) and "llama"
// (SentencePiece BPE, whose merges follow from the scores of the tokens). INVALID_ARGUMENT names
// the key.
absl::StatusOr<GgufTokenizer> TokenizerFromGguf(const GgufFile& file);

}  // namespace everlong
