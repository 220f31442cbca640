// Text to token ids and back, as Hugging Face tokenizers does it for Llama-family models.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace everlong {

// Immutable after construction; every method may be called from any thread.
class Tokenizer {
 public:
  // `json` is the content of a tokenizer.json. Unsupported parts are named in the error.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json);

  virtual ~Tokenizer() = default;

  virtual int64_t vocab_size() const = 0;

  struct EncodeOptions {
    bool add_special = true;     // what the post-processor adds, e.g. BOS
    bool parse_special = false;  // true: special tokens in the text become themselves (chat
                                 // templates); false: look-alikes in user text stay text
  };
  // `text` must be valid UTF-8: INVALID_ARGUMENT with the offset of the first bad byte otherwise.
  // INVALID_ARGUMENT too where the tokenizer's regular expressions would take too long.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      EncodeOptions options) const = 0;

  // The text of `ids`; bytes that are not UTF-8 become U+FFFD. Ids must be in [0, vocab_size()).
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special) const = 0;

  // The bytes that one token adds to a text that already has a beginning; special tokens: their
  // content. May be part of a UTF-8 sequence.
  virtual std::string TokenBytes(int32_t id) const = 0;

  // The same for the first token of a text, without the space that Encode puts before a text.
  virtual std::string FirstTokenBytes(int32_t id) const = 0;

  virtual bool IsSpecial(int32_t id) const = 0;

  // Id of a token by its exact content (as in the vocabulary or the added tokens), or -1.
  virtual int32_t Find(std::string_view content) const = 0;
};

// Decodes a stream token by token and never emits part of a UTF-8 sequence.
// The concatenation of all results equals Decode of all ids.
class StreamDecoder {
 public:
  // `tokenizer` must outlive it.
  StreamDecoder(const Tokenizer* tokenizer, bool skip_special);

  // Text that has become complete with this token; may be empty.
  std::string Append(int32_t id);
  // What is left at the end; incomplete sequences become U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool started_ = false;  // some token has added bytes
  std::string pending_;   // begins a UTF-8 sequence
};

}  // namespace everlong
