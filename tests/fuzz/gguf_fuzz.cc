// Any bytes as a GGUF file: refused, or a model whose tensors can be read to their last byte and
// whose tokenizer is a readable tokenizer.json.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/check.h"
#include "engine/checkpoint.h"
#include "engine/status.h"
#include "engine/tokenizer/json.h"
#include "fmt/format.h"

namespace everlong {
namespace {

unsigned SumOf(const HostMatrix& matrix) {
  const auto* bytes = static_cast<const unsigned char*>(matrix.data);
  unsigned sum = 0;
  for (int64_t i = 0; i < matrix.rows * RowBytes(matrix.type, matrix.cols); ++i) sum += bytes[i];
  return sum;
}

void ReadTensor(const Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols) {
  const auto tensor = checkpoint.Tensor(name, rows, cols);
  if (!tensor.ok()) {
    EVERLONG_CHECK(!Message(tensor.status()).empty());
    return;
  }
  volatile unsigned sum = SumOf(*tensor);
  static_cast<void>(sum);
}

void ReadModel(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  EVERLONG_CHECK(config.q_heads % config.kv_heads == 0);
  EVERLONG_CHECK(config.rope_inv_freq.size() == static_cast<size_t>(config.head_dim / 2));
  for (const int32_t id : config.eos_ids) EVERLONG_CHECK(id >= 0 && id < config.vocab_size);
  const std::string layer = "model.layers.0.";
  const int64_t q_width = int64_t{config.q_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  ReadTensor(checkpoint, "model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  ReadTensor(checkpoint, layer + "self_attn.q_proj.weight", q_width, config.hidden_size);
  ReadTensor(checkpoint, layer + "self_attn.q_proj.bias", 1, q_width);
  ReadTensor(checkpoint, layer + "self_attn.k_proj.weight", kv_width, config.hidden_size);
  ReadTensor(checkpoint, layer + "mlp.down_proj.weight", config.hidden_size,
             config.intermediate_size);
  ReadTensor(checkpoint, layer + "input_layernorm.weight", 1, config.hidden_size);
}

}  // namespace
}  // namespace everlong

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace everlong;
  static const int file = memfd_create("gguf", 0);
  EVERLONG_CHECK(ftruncate(file, 0) == 0);
  EVERLONG_CHECK(pwrite(file, data, size, 0) == static_cast<ssize_t>(size));
  const auto checkpoint = Checkpoint::Open(fmt::format("/proc/self/fd/{}", file));
  if (!checkpoint.ok()) {
    EVERLONG_CHECK(!Message(checkpoint.status()).empty());
    return 0;
  }
  ReadModel(**checkpoint);
  EVERLONG_CHECK(ParseTokenizerJson((*checkpoint)->tokenizer_json()).ok());
  return 0;
}
