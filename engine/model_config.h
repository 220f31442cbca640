// Geometry of a Llama-family model, as its checkpoint states it. Differences between architectures
// are data here; the forward pass is one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/json_object.h"

namespace everlong {

struct ModelConfig {
  std::string architecture;  // e.g. "LlamaForCausalLM"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int64_t trained_length = 0;  // max_position_embeddings
  float rms_norm_eps = 1e-5f;
  bool tied_embeddings = false;
  bool qkv_bias = false;     // Qwen2
  bool output_bias = false;  // bias on the attention output projection (attention_bias of Llama)
  bool mlp_bias = false;
  bool qk_norm = false;      // Qwen3
  std::vector<bool> rotate;  // [num_layers]; false: a layer without position embedding (SmolLM3)

  // Rotary embedding with any rope scaling (linear, llama3, yarn) already applied.
  std::vector<float> rope_inv_freq;  // [head_dim / 2]
  float rope_scale = 1.0f;           // multiplies rotated queries and keys (YaRN), else 1

  std::vector<int32_t> bos_ids;  // first is prepended where the tokenizer adds a BOS
  std::vector<int32_t>
      eos_ids;  // any ends a generation; generation_config.json extends config.json
};

// Reads config.json and, where not empty, generation_config.json. Unknown architectures, activation
// functions, rope types and impossible geometries are refused with a message naming the key.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_config_json);

// The same from the keys of a config.json, wherever they come from.
absl::StatusOr<ModelConfig> ReadModelConfig(JsonObject& fields);

}  // namespace everlong
