// The content of a tokenizer.json, a zero byte and a text: whatever the file says, encoding keeps
// to the vocabulary and decoding to UTF-8, as a stream too.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/check.h"
#include "engine/text.h"
#include "engine/tokenizer.h"

namespace everlong {
namespace {

void CheckEncoding(const Tokenizer& tokenizer, std::string_view text, bool special) {
  const auto ids = tokenizer.Encode(text, {.add_special = special, .parse_special = special});
  if (!ids.ok()) return;
  EVERLONG_CHECK(FindInvalidUtf8(text) == std::string_view::npos);
  StreamDecoder decoder(&tokenizer, special);
  std::string streamed;
  for (const int32_t id : *ids) {
    EVERLONG_CHECK(id >= 0 && id < tokenizer.vocab_size());
    const std::string piece = decoder.Append(id);
    EVERLONG_CHECK(FindInvalidUtf8(piece) == std::string::npos);
    streamed += piece;
  }
  EVERLONG_CHECK(streamed + decoder.Finish() == tokenizer.Decode(*ids, special));
}

}  // namespace
}  // namespace everlong

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace everlong;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  const auto tokenizer = Tokenizer::FromJson(input.substr(0, end));
  if (!tokenizer.ok()) return 0;
  const std::string_view text = input.substr(std::min(end + 1, size));
  (*tokenizer)->Find(text);
  CheckEncoding(**tokenizer, text, false);
  CheckEncoding(**tokenizer, text, true);
  return 0;
}
