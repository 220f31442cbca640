#include "engine/gguf_config.h"

#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "engine/json_object.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

using nlohmann::json;

struct Architecture {
  std::string_view name;  // general.architecture
  std::string_view hugging_face;
  bool rotates_neighbours;
};

constexpr Architecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", true},
    {"qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "Qwen3ForCausalLM", false},
    {"smollm3", "SmolLM3ForCausalLM", true},
};

// A key of config.json and, behind the architecture's name and a dot, the one that it has here.
struct Key {
  const char* config;
  const char* gguf;
};

constexpr Key kKeys[] = {
    {"num_hidden_layers", "block_count"},
    {"hidden_size", "embedding_length"},
    {"intermediate_size", "feed_forward_length"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"max_position_embeddings", "context_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"rope_theta", "rope.freq_base"},
    {"sliding_window", "attention.sliding_window"},
};

constexpr Key kScalingKeys[] = {
    {"rope_type", "rope.scaling.type"},
    {"factor", "rope.scaling.factor"},
    {"original_max_position_embeddings", "rope.scaling.original_context_length"},
    {"beta_fast", "rope.scaling.yarn_beta_fast"},
    {"beta_slow", "rope.scaling.yarn_beta_slow"},
};

// Values that change the computation in ways that are not supported, and those that do not.
struct Requirement {
  const char* gguf;
  double harmless;
};

constexpr Requirement kRequirements[] = {
    {"expert_count", 0.0},      {"attention.scale", 0.0}, {"rope.scaling.attn_factor", 1.0},
    {"rope.scale_linear", 1.0}, {"logit_scale", 0.0},     {"attention.clamp_kqv", 0.0},
};

absl::StatusOr<Architecture> FindArchitecture(JsonObject& metadata) {
  constexpr std::string_view kKey = "general.architecture";
  const std::string name = metadata.String(kKey);
  std::vector<std::string_view> supported;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    supported.push_back(architecture.name);
  }
  metadata.Refuse(kKey, fmt::format("supported are {}", fmt::join(supported, ", ")));
  return metadata.status();
}

// Makes the config.json that the metadata was made from.
class ConfigWriter {
 public:
  ConfigWriter(const GgufFile& file, const Architecture& architecture)
      : file_(file), architecture_(architecture), metadata_(file.scalars, "metadata") {}

  absl::StatusOr<json> Write(const GgufTokenizer& tokenizer);
  ShownKeys shown() const;

 private:
  std::string Full(const char* key) const { return fmt::format("{}.{}", architecture_.name, key); }
  void Copy(const Key& key, json& to);
  void AddWindow();
  void AddScaling();
  void CheckWholeHeads();
  void CheckRequirements();

  const GgufFile& file_;
  const Architecture& architecture_;
  JsonObject metadata_;
  json config_ = json::object();
};

ShownKeys ConfigWriter::shown() const {
  ShownKeys shown = {{"vocab_size", "the number of tokenizer.ggml.tokens"}};
  for (const Key& key : kKeys) shown[key.config] = Full(key.gguf);
  return shown;
}

void ConfigWriter::Copy(const Key& key, json& to) {
  const std::string full = Full(key.gguf);
  if (file_.arrays.contains(full)) {
    metadata_.Adopt(absl::InvalidArgumentError(
        fmt::format("metadata: {} is an array; one value for all layers is supported", full)));
  }
  if (const json* value = metadata_.Find(full); value != nullptr) to[key.config] = *value;
}

// Of what is called llama only Mistral has a window.
void ConfigWriter::AddWindow() {
  const auto window = config_.find("sliding_window");
  if (window == config_.end()) return;
  if (*window == 0) {
    config_.erase(window);
    return;
  }
  config_["use_sliding_window"] = true;
  if (architecture_.name == "llama") config_["architectures"] = {"MistralForCausalLM"};
}

void ConfigWriter::AddScaling() {
  json scaling = json::object();
  for (const Key& key : kScalingKeys) Copy(key, scaling);
  if (!scaling.contains("rope_type") && scaling.contains("factor")) scaling["rope_type"] = "linear";
  if (scaling.contains("rope_type") && scaling["rope_type"] == "none") scaling = json::object();
  config_["rope_scaling"] = std::move(scaling);
}

// Values as long as keys, and every dimension rotated.
void ConfigWriter::CheckWholeHeads() {
  const json* head_dim = config_.contains("head_dim") ? &config_["head_dim"] : nullptr;
  for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
    const json* value = metadata_.Find(Full(key));
    if (value == nullptr || head_dim == nullptr || *value == *head_dim) continue;
    metadata_.Refuse(Full(key), fmt::format("only {}, the dimensions of a head, is supported",
                                            DescribeJson(*head_dim)));
  }
}

void ConfigWriter::CheckRequirements() {
  for (const auto& [gguf, harmless] : kRequirements) {
    const std::string key = Full(gguf);
    const double value = metadata_.Number(key, {-1e300, 1e300}, harmless);
    if (value != harmless) metadata_.Refuse(key, fmt::format("only {} is supported", harmless));
  }
  if (metadata_.Int("split.count", {0, 1 << 16}, 0) > 1) {
    metadata_.Refuse("split.count", "models in one file are supported");
  }
}

absl::StatusOr<json> ConfigWriter::Write(const GgufTokenizer& tokenizer) {
  config_["architectures"] = {architecture_.hugging_face};
  config_["vocab_size"] = tokenizer.vocab_size;
  config_["bos_token_id"] = tokenizer.bos_ids;
  config_["eos_token_id"] = tokenizer.eos_ids;
  config_["tie_word_embeddings"] = !file_.tensors.contains("output.weight");
  config_["rope_theta"] = 10000.0;
  for (const Key& key : kKeys) Copy(key, config_);
  if (!config_.contains("head_dim")) {
    const int64_t heads = metadata_.Int(Full("attention.head_count"), {1, 1 << 14});
    const int64_t width = metadata_.Int(Full("embedding_length"), {1, 1 << 24});
    if (width % heads == 0) config_["head_dim"] = width / heads;
  }
  AddWindow();
  AddScaling();
  CheckWholeHeads();
  CheckRequirements();
  RETURN_IF_ERROR(metadata_.status());
  return std::move(config_);
}

// rope_freqs.weight, f32 [head_dim / 2], divides the frequencies: Llama 3's scaling.
absl::Status ScaleFrequencies(const GgufFile& file, ModelConfig& config) {
  const auto found = file.tensors.find("rope_freqs.weight");
  if (found == file.tensors.end()) return absl::OkStatus();
  const GgufTensor& tensor = found->second;
  std::vector<float>& frequencies = config.rope_inv_freq;
  const std::vector<int64_t> shape = {static_cast<int64_t>(frequencies.size())};
  std::vector<float> factors(frequencies.size());
  bool usable = tensor.dtype == DType::kF32 && tensor.shape == shape;
  if (usable) std::memcpy(factors.data(), tensor.bytes.data(), tensor.bytes.size());
  for (size_t i = 0; usable && i < factors.size(); ++i) {
    usable = factors[i] >= 1e-6f && factors[i] <= 1e6f;
    frequencies[i] /= factors[i];
  }
  if (usable) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "tensor \"rope_freqs.weight\": {} of shape [{}] where {} F32 from 1e-6 to 1e6 are needed",
      tensor.type, fmt::join(tensor.shape, ", "), shape[0]));
}

}  // namespace

absl::StatusOr<GgufModel> ModelFromGguf(const GgufFile& file, const GgufTokenizer& tokenizer) {
  JsonObject metadata(file.scalars, "metadata");
  ASSIGN_OR_RETURN(const Architecture architecture, FindArchitecture(metadata));
  ConfigWriter writer(file, architecture);
  ASSIGN_OR_RETURN(const json config_json, writer.Write(tokenizer));
  JsonObject fields(config_json, "metadata", writer.shown());
  GgufModel model = {.rotates_neighbours = architecture.rotates_neighbours};
  ASSIGN_OR_RETURN(model.config, ReadModelConfig(fields));
  model.config.qkv_bias = file.tensors.contains("blk.0.attn_q.bias");
  model.config.output_bias = file.tensors.contains("blk.0.attn_output.bias");
  model.config.mlp_bias = file.tensors.contains("blk.0.ffn_down.bias");
  RETURN_IF_ERROR(ScaleFrequencies(file, model.config));
  return model;
}

}  // namespace everlong
