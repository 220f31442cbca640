// A checkpoint as published: weights mapped into memory, geometry and tokenizer beside them.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model_config.h"
#include "kernels/kernels.h"

namespace everlong {

// Opened once, then immutable: safe to read from any thread. Views stay valid as long as it lives.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // A directory as Hugging Face publishes it (config.json, *.safetensors, tokenizer.json ...), a
  // GGUF file or a directory with one, or a name as OpenSynthetic takes it. Damaged or unsupported
  // files give INVALID_ARGUMENT (or NOT_FOUND) naming the file, the tensor and the reason.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  virtual const ModelConfig& config() const = 0;

  // The matrix (or vector, rows = 1) of that Hugging Face name, e.g.
  // "model.layers.0.self_attn.q_proj.weight"; its shape must be exactly [rows][cols].
  virtual absl::StatusOr<HostMatrix> Tensor(std::string_view name, int64_t rows,
                                            int64_t cols) const = 0;

  // Contents of tokenizer.json, made from the metadata of a GGUF file, and of the chat template (""
  // where there is none).
  virtual const std::string& tokenizer_json() const = 0;
  virtual const std::string& chat_template() const = 0;
};

}  // namespace everlong
