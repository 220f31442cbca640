// Tokenizes for the oracle test: tokenizer_driver FILE < requests > replies
//
// FILE is a tokenizer.json or a GGUF file.
//
// A request is a byte of flags, a length in bytes (uint32) and as many bytes: a text or, with
// kDecodeOnly, token ids (int32). The reply has the ids and then the text that they decode to, each
// behind its length in bytes (uint32). Numbers are in the machine's byte order.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf.h"
#include "engine/mapped_file.h"
#include "engine/tokenizer.h"
#include "engine/tokenizer/gguf.h"

namespace {

enum Flag : uint8_t { kAddSpecial = 1, kParseSpecial = 2, kSkipSpecial = 4, kDecodeOnly = 8 };

// The value or, where there is none, the end of the program.
template <typename T>
T OrExit(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << value.status() << "\n";
  std::exit(1);
}

template <typename T>
bool Read(T* value, size_t num_bytes) {
  return static_cast<bool>(
      std::cin.read(reinterpret_cast<char*>(value), static_cast<std::streamsize>(num_bytes)));
}

void Write(const void* data, size_t num_bytes) {
  const auto length = static_cast<uint32_t>(num_bytes);
  std::cout.write(reinterpret_cast<const char*>(&length), sizeof(length));
  std::cout.write(static_cast<const char*>(data), length);
}

std::vector<int32_t> Ids(const everlong::Tokenizer& tokenizer, uint8_t flags,
                         const std::string& body) {
  if ((flags & kDecodeOnly) == 0) {
    return OrExit(tokenizer.Encode(body, {.add_special = (flags & kAddSpecial) != 0,
                                          .parse_special = (flags & kParseSpecial) != 0}));
  }
  std::vector<int32_t> ids(body.size() / sizeof(int32_t));
  body.copy(reinterpret_cast<char*>(ids.data()), ids.size() * sizeof(int32_t));
  return ids;
}

std::unique_ptr<everlong::Tokenizer> Open(const char* path) {
  const everlong::MappedFile file = OrExit(everlong::MappedFile::Open(path));
  if (!file.bytes().starts_with("GGUF")) {
    return OrExit(everlong::Tokenizer::FromJson(file.bytes()));
  }
  const everlong::GgufFile gguf = OrExit(everlong::ParseGguf(file.bytes()));
  return OrExit(everlong::Tokenizer::FromJson(OrExit(everlong::TokenizerFromGguf(gguf)).json));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenizer_driver FILE < requests > replies\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  const auto tokenizer = Open(argv[1]);
  uint8_t flags = 0;
  uint32_t length = 0;
  std::string body;
  while (Read(&flags, sizeof(flags)) && Read(&length, sizeof(length))) {
    body.resize(length);
    if (!Read(body.data(), length)) break;
    const std::vector<int32_t> ids = Ids(*tokenizer, flags, body);
    const std::string text = tokenizer->Decode(ids, (flags & kSkipSpecial) != 0);
    Write(ids.data(), ids.size() * sizeof(int32_t));
    Write(text.data(), text.size());
  }
  return 0;
}
