// The forward pass of a Llama-family model: a straight list of Kernels calls over one ragged batch.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"
#include "engine/fidelity.h"
#include "engine/model_config.h"
#include "kernels/kernels.h"

namespace everlong {

// Device memory that holds contexts from step to step.
struct ContextMemory {
  KvCache cache;
  KeyIndex index;                    // base null: no selector needs it
  Selection selection;               // blocks null: no attention is sparse
  std::vector<int32_t> layer_class;  // [num_layers], into StepLayout::plans
};

// Engine thread only. Weights and activations live on the device of `kernels`, which must outlive
// it.
class Model {
 public:
  // Loads the weights and sizes the activations for steps of up to max_tokens tokens and
  // max_logit_rows rows of logits at a time. Errors name the tensor.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const Checkpoint& checkpoint, Kernels* kernels,
                                                     int32_t max_tokens, int32_t max_logit_rows);

  const ModelConfig& config() const { return config_; }
  int32_t max_logit_rows() const { return max_logit_rows_; }
  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t activation_bytes() const { return activation_bytes_; }

  // Runs all layers over the step; stores its keys and values in `memory`. `fidelity`, where not
  // null, measures each layer's attention.
  void Forward(const StepLayout& step, const ContextMemory& memory, Fidelity* fidelity = nullptr);

  // Logits of output rows [first, first + rows) of the last Forward: device, f32 [rows][vocab].
  float* Logits(int32_t first, int32_t rows);

 private:
  // A projection: one matrix, or several side by side where they cannot be stacked.
  struct Linear {
    std::vector<Matrix> parts;    // outputs back to back
    const float* bias = nullptr;  // device, all parts', or null
  };
  struct Layer {
    const float* attention_norm;
    const float* mlp_norm;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    Linear qkv;
    Linear attention_out;
    Linear gate_up;
    Linear down;
  };
  // Of a step or its outputs; those of decoded tokens come first.
  struct Rows {
    int32_t all;
    int32_t decoded;
  };
  class Loader;

  Model(ModelConfig config, Kernels* kernels, int32_t max_tokens, int32_t max_logit_rows);

  void AttentionBlock(const Layer& layer, int64_t index, const StepLayout& step,
                      const ContextMemory& memory, Fidelity* fidelity);
  void MlpBlock(const Layer& layer, Rows rows);
  void Apply(const Linear& linear, const void* x, int64_t x_stride, void* out, int64_t out_stride,
             Rows rows, MatMulOut mode);
  void Norm(const float* weight, int32_t rows, int32_t first_output);

  ModelConfig config_;
  Kernels* kernels_;
  int32_t max_logit_rows_;
  int64_t weight_bytes_ = 0;
  int64_t activation_bytes_ = 0;
  int32_t num_decode_outputs_ = 0;  // of the last Forward

  Matrix embedding_;
  Linear head_;
  const float* final_norm_ = nullptr;
  std::vector<Layer> layers_;

  float* residual_;  // [max_tokens][hidden]
  void* normed_;     // [max_tokens][hidden]
  void* qkv_;        // [max_tokens][(q_heads + 2 kv_heads) * head_dim]
  void* attended_;   // [max_tokens][q_heads * head_dim]
  void* gate_up_;    // [max_tokens][2 * intermediate]; before, attention that is only measured
  float* lse_;       // [max_tokens][q_heads], of it
  void* gated_;      // [max_tokens][intermediate]
  float* logits_;    // [max_logit_rows][vocab]
};

}  // namespace everlong
