// Tokenizes with llama.cpp: llama_cpp_tokens FILE.gguf < requests > replies, in the format of
// tests/tokenizer/tokenizer_driver.cc. The text of a reply is left empty.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

enum Flag : uint8_t { kAddSpecial = 1, kParseSpecial = 2 };

[[noreturn]] void Fail(const char* message) {
  std::cerr << "llama_cpp_tokens: " << message << "\n";
  std::exit(1);
}

template <typename T>
bool Read(T* value, size_t num_bytes) {
  return static_cast<bool>(
      std::cin.read(reinterpret_cast<char*>(value), static_cast<std::streamsize>(num_bytes)));
}

void Write(const std::vector<llama_token>& ids) {
  const auto length = static_cast<uint32_t>(ids.size() * sizeof(llama_token));
  const uint32_t no_text = 0;
  std::cout.write(reinterpret_cast<const char*>(&length), sizeof(length));
  std::cout.write(reinterpret_cast<const char*>(ids.data()), length);
  std::cout.write(reinterpret_cast<const char*>(&no_text), sizeof(no_text));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) Fail("usage: llama_cpp_tokens FILE.gguf < requests > replies");
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params parameters = llama_model_default_params();
  parameters.vocab_only = true;
  const llama_model* model = llama_model_load_from_file(argv[1], parameters);
  if (model == nullptr) Fail("the vocabulary cannot be loaded");
  uint8_t flags = 0;
  uint32_t length = 0;
  std::string text;
  while (Read(&flags, sizeof(flags)) && Read(&length, sizeof(length))) {
    text.resize(length);
    if (!Read(text.data(), length)) break;
    std::vector<llama_token> ids(length + 2);
    const int32_t count = llama_tokenize(
        llama_model_get_vocab(model), text.data(), static_cast<int32_t>(length), ids.data(),
        static_cast<int32_t>(ids.size()), (flags & kAddSpecial) != 0, (flags & kParseSpecial) != 0);
    if (count < 0) Fail("llama_tokenize failed");
    ids.resize(count);
    Write(ids);
  }
  return 0;
}
