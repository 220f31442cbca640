#include "engine/model_config.h"

#include <algorithm>

#include "engine/rope.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

// Of the attention projections. kConfigured: the key attention_bias decides for all four.
enum class Bias { kNone, kQkv, kConfigured };
// Sliding window attention. kSwitched: the key use_sliding_window decides.
enum class Window { kNone, kAlways, kSwitched };

// What the architectures differ in, with the defaults that transformers has for absent keys.
struct Architecture {
  std::string_view name;
  int64_t head_dim = 0;       // 0: hidden_size / num_attention_heads
  int64_t window_length = 0;  // 0: as long as the context
  double rope_theta = 10000.0;
  Window window = Window::kNone;
  Bias attention_bias = Bias::kNone;
  bool mlp_bias = false;          // the key mlp_bias exists
  bool unrotated_layers = false;  // the key no_rope_layers exists
  bool qk_norm = false;
  bool tied_embeddings = false;
};

constexpr Architecture kArchitectures[] = {
    {.name = "LlamaForCausalLM", .attention_bias = Bias::kConfigured, .mlp_bias = true},
    {.name = "MistralForCausalLM", .window_length = 4096, .window = Window::kAlways},
    {.name = "Qwen2ForCausalLM",
     .window_length = 4096,
     .window = Window::kSwitched,
     .attention_bias = Bias::kQkv},
    {.name = "Qwen3ForCausalLM",
     .head_dim = 128,
     .window_length = 4096,
     .window = Window::kSwitched,
     .attention_bias = Bias::kConfigured,
     .qk_norm = true},
    {.name = "SmolLM3ForCausalLM",
     .rope_theta = 2000000.0,
     .window = Window::kSwitched,
     .attention_bias = Bias::kConfigured,
     .mlp_bias = true,
     .unrotated_layers = true,
     .tied_embeddings = true},
};

constexpr IntRange kWidths = {1, int64_t{1} << 24};
constexpr IntRange kCounts = {1, int64_t{1} << 14};
constexpr IntRange kHeadDims = {8, 512};  // multiples of 8: the key index packs dimensions
constexpr IntRange kLengths = {1, int64_t{1} << 40};

absl::StatusOr<Architecture> FindArchitecture(const JsonObject& fields) {
  const nlohmann::json* named = fields.Find("architectures");
  const bool one = named != nullptr && named->is_array() && named->size() == 1;
  const nlohmann::json name = one ? named->at(0) : nlohmann::json();
  std::vector<std::string_view> supported;
  for (const Architecture& architecture : kArchitectures) {
    if (name.is_string() && name.get_ref<const std::string&>() == architecture.name) {
      return architecture;
    }
    supported.push_back(architecture.name);
  }
  return absl::InvalidArgumentError(fmt::format("{}: architectures is [{}]; it must hold one of {}",
                                                fields.where(), one ? DescribeJson(name) : "",
                                                fmt::join(supported, ", ")));
}

void ReadGeometry(JsonObject& fields, const Architecture& architecture, ModelConfig& config) {
  config.vocab_size = fields.Int("vocab_size", kWidths);
  config.hidden_size = fields.Int("hidden_size", kWidths);
  config.intermediate_size = fields.Int("intermediate_size", kWidths);
  config.num_layers = static_cast<int32_t>(fields.Int("num_hidden_layers", kCounts));
  config.trained_length = fields.Int("max_position_embeddings", kLengths);
  config.rms_norm_eps = static_cast<float>(fields.Number("rms_norm_eps", {0.0, 1.0}, 1e-6));
  config.tied_embeddings = fields.Bool("tie_word_embeddings", architecture.tied_embeddings);
  if (const std::string act = fields.String("hidden_act", "silu");
      act != "silu" && act != "swish") {
    fields.Refuse("hidden_act", "only silu is supported");
  }
}

void ReadHeads(JsonObject& fields, const Architecture& architecture, ModelConfig& config) {
  const int64_t q_heads = fields.Int("num_attention_heads", kCounts);
  const int64_t kv_heads = fields.Int("num_key_value_heads", kCounts, q_heads);
  if (q_heads % kv_heads != 0) {
    fields.Refuse("num_key_value_heads",
                  fmt::format("it must divide num_attention_heads {}", q_heads));
  }
  int64_t head_dim = architecture.head_dim;
  if (head_dim == 0) {
    head_dim = config.hidden_size / q_heads;
    if (fields.Find("head_dim") == nullptr && config.hidden_size % q_heads != 0) {
      fields.Refuse(
          "num_attention_heads",
          fmt::format("without a head_dim it must divide hidden_size {}", config.hidden_size));
    }
  }
  head_dim = fields.Int("head_dim", kHeadDims, head_dim);
  if (head_dim < kHeadDims.min || head_dim > kHeadDims.max || head_dim % kHeadDims.min != 0) {
    fields.Refuse("head_dim",
                  fmt::format("{} dimensions of a head are not a multiple of {} up to {}", head_dim,
                              kHeadDims.min, kHeadDims.max));
    head_dim = kHeadDims.min;
  }
  config.q_heads = static_cast<int32_t>(q_heads);
  config.kv_heads = static_cast<int32_t>(kv_heads);
  config.head_dim = static_cast<int32_t>(head_dim);
}

void ReadBiases(JsonObject& fields, const Architecture& architecture, ModelConfig& config) {
  const bool configured =
      architecture.attention_bias == Bias::kConfigured && fields.Bool("attention_bias", false);
  config.qkv_bias = configured || architecture.attention_bias == Bias::kQkv;
  config.output_bias = configured;
  config.mlp_bias = architecture.mlp_bias && fields.Bool("mlp_bias", false);
  config.qk_norm = architecture.qk_norm;
}

// A sliding window that no served position outgrows is full attention.
void CheckWindow(JsonObject& fields, const Architecture& architecture, int64_t trained_length) {
  if (architecture.window == Window::kNone || fields.IsNull("sliding_window")) return;
  if (architecture.window == Window::kSwitched && !fields.Bool("use_sliding_window", false)) return;
  const nlohmann::json* layers = fields.Find("layer_types");
  const auto is_full = [](const nlohmann::json& type) {
    return type.is_string() && type.get_ref<const std::string&>() == "full_attention";
  };
  if (layers != nullptr && std::all_of(layers->begin(), layers->end(), is_full)) return;
  const int64_t window = fields.Int("sliding_window", kLengths, architecture.window_length);
  if (window == 0 || window >= trained_length) return;
  fields.Refuse("sliding_window",
                fmt::format("attention over a sliding window of {} is not supported where "
                            "max_position_embeddings {} exceeds it",
                            window, trained_length));
}

std::vector<bool> ReadRotatedLayers(JsonObject& fields, const Architecture& architecture,
                                    int32_t num_layers) {
  std::vector<bool> rotate(num_layers, true);
  if (!architecture.unrotated_layers) return rotate;
  const std::vector<int64_t> given = fields.Ints("no_rope_layers", {0, 1});  // 1: rotated
  const int64_t interval = fields.Int("no_rope_layer_interval", kCounts, 4);
  const bool listed = fields.Find("no_rope_layers") != nullptr;
  if (listed && given.size() < rotate.size()) {
    fields.Refuse("no_rope_layers",
                  fmt::format("it must have num_hidden_layers {} entries", num_layers));
    return rotate;
  }
  for (int32_t i = 0; i < num_layers; ++i) {
    rotate[i] = listed ? given[i] != 0 : (i + 1) % interval != 0;
  }
  return rotate;
}

void AddTokenIds(JsonObject& fields, const ModelConfig& config, std::string_view key,
                 std::vector<int32_t>& ids) {
  for (int64_t id : fields.Ints(key, {0, config.vocab_size - 1})) {
    const auto narrow = static_cast<int32_t>(id);
    if (std::find(ids.begin(), ids.end(), narrow) == ids.end()) ids.push_back(narrow);
  }
}

absl::Status ReadSpecialTokens(JsonObject& fields, ModelConfig& config) {
  AddTokenIds(fields, config, "bos_token_id", config.bos_ids);
  AddTokenIds(fields, config, "eos_token_id", config.eos_ids);
  return fields.status();
}

absl::StatusOr<nlohmann::json> ParseFile(std::string_view text, std::string_view name) {
  auto json = ParseJsonObject(text);
  if (!json.ok()) return Annotate(name, json.status());
  return json;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(JsonObject& fields) {
  ASSIGN_OR_RETURN(const Architecture architecture, FindArchitecture(fields));
  ModelConfig config{.architecture = std::string(architecture.name)};
  if (fields.Find("quantization_config") != nullptr) {
    fields.Refuse("quantization_config", "quantised checkpoints are not supported");
  }
  ReadGeometry(fields, architecture, config);
  ReadHeads(fields, architecture, config);
  ReadBiases(fields, architecture, config);
  CheckWindow(fields, architecture, config.trained_length);
  config.rotate = ReadRotatedLayers(fields, architecture, config.num_layers);
  RopeFrequencies rope = ReadRope(fields, {.head_dim = config.head_dim,
                                           .trained_length = config.trained_length,
                                           .default_theta = architecture.rope_theta});
  config.rope_inv_freq = std::move(rope.inv_freq);
  config.rope_scale = rope.scale;
  RETURN_IF_ERROR(ReadSpecialTokens(fields, config));
  return config;
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_config_json) {
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseFile(config_json, "config.json"));
  JsonObject fields(json, "config.json");
  ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(fields));
  if (generation_config_json.empty()) return config;
  ASSIGN_OR_RETURN(const nlohmann::json generation,
                   ParseFile(generation_config_json, "generation_config.json"));
  JsonObject generation_fields(generation, "generation_config.json");
  RETURN_IF_ERROR(ReadSpecialTokens(generation_fields, config));
  return config;
}

}  // namespace everlong
