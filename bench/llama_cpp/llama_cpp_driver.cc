// llama.cpp on one sequence, by command. Prints "ready" when the model is loaded, then answers each
// line of standard input with one line:
//
//   read ID...     appends these tokens to the context; seconds
//   decode N       appends N tokens, each but the first the most likely; seconds
//   keep N         drops all tokens of the context but the first N; "ok"
//   logits FILE    appends to FILE the logits after the last token read, f32 [vocab_size]; "ok"
//   tokenize TEXT  ids of the text, in which \n stands for a line feed and \\ for a backslash
//
//   llama_cpp_driver MODEL.gguf THREADS CONTEXT
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

[[noreturn]] void Fail(const std::string& message) {
  std::cerr << "llama_cpp_driver: " << message << "\n";
  std::exit(1);
}

class Sequence {
 public:
  Sequence(const char* path, int threads, int context_tokens) {
    model_ = llama_model_load_from_file(path, llama_model_default_params());
    if (!model_) Fail("the model cannot be loaded");
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = context_tokens;
    parameters.n_threads = parameters.n_threads_batch = threads;
    context_ = llama_init_from_model(model_, parameters);
    if (!context_) Fail("the context cannot be made");
    vocab_ = llama_model_get_vocab(model_);
  }

  // In batches of the default size; only the last token's logits are computed.
  void Read(std::vector<llama_token> tokens) {
    const auto batch = static_cast<int64_t>(llama_n_batch(context_));
    const auto count = static_cast<int64_t>(tokens.size());
    for (int64_t begin = 0; begin < count; begin += batch) {
      const auto size = static_cast<int32_t>(std::min(batch, count - begin));
      if (llama_decode(context_, llama_batch_get_one(tokens.data() + begin, size)) != 0) {
        Fail("llama_decode failed");
      }
    }
    llama_synchronize(context_);
    if (count > 0) last_ = tokens.back();
  }

  // Each step reads the token that the step before it gave, the first one the last token again.
  void Decode(int count) {
    for (int i = 0; i < count; ++i) {
      Read({last_});
      const float* logits = Logits();
      last_ = static_cast<llama_token>(std::max_element(logits, logits + num_tokens()) - logits);
    }
  }

  void Keep(llama_pos length) {
    if (!llama_memory_seq_rm(llama_get_memory(context_), 0, length, -1)) {
      Fail("the context cannot be shortened");
    }
  }

  const float* Logits() const { return llama_get_logits_ith(context_, -1); }
  int32_t num_tokens() const { return llama_vocab_n_tokens(vocab_); }

  std::vector<llama_token> Tokenize(const std::string& text) const {
    std::vector<llama_token> tokens(text.size() + 2);
    const int32_t count = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()),
                                         tokens.data(), static_cast<int32_t>(tokens.size()),
                                         /*add_special=*/false, /*parse_special=*/false);
    if (count < 0) Fail("llama_tokenize failed");
    tokens.resize(count);
    return tokens;
  }

 private:
  llama_model* model_;
  llama_context* context_;
  const llama_vocab* vocab_;
  llama_token last_ = 0;
};

template <typename Work>
double SecondsOf(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::string Unescape(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      result += text[++i] == 'n' ? '\n' : text[i];
    } else {
      result += text[i];
    }
  }
  return result;
}

void Obey(const std::string& line, Sequence& sequence) {
  std::istringstream words(line);
  std::string command, file;
  int count = 0;
  words >> command;
  if (command == "read") {
    std::vector<llama_token> tokens{std::istream_iterator<llama_token>(words), {}};
    std::cout << SecondsOf([&] { sequence.Read(std::move(tokens)); }) << std::endl;
  } else if (command == "decode" && words >> count) {
    std::cout << SecondsOf([&] { sequence.Decode(count); }) << std::endl;
  } else if (command == "keep" && words >> count) {
    sequence.Keep(count);
    std::cout << "ok" << std::endl;
  } else if (command == "logits" && words >> file) {
    std::ofstream(file, std::ios::binary | std::ios::app)
        .write(reinterpret_cast<const char*>(sequence.Logits()),
               static_cast<std::streamsize>(sizeof(float)) * sequence.num_tokens());
    std::cout << "ok" << std::endl;
  } else if (command == "tokenize") {
    const std::string text = Unescape(line.substr(std::min(line.size(), command.size() + 1)));
    for (llama_token token : sequence.Tokenize(text)) std::cout << token << ' ';
    std::cout << std::endl;
  } else {
    Fail("cannot obey: " + line);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) Fail("usage: llama_cpp_driver MODEL.gguf THREADS CONTEXT");
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  Sequence sequence(argv[1], std::atoi(argv[2]), std::atoi(argv[3]));
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) Obey(line, sequence);
}
