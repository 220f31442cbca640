#include "engine/model_config.h"

#include <cmath>
#include <random>
#include <string>

#include "engine/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace everlong {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Llama 3.2 1B as published, without what nobody reads.
json Llama() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": null, "tie_word_embeddings": true, "attention_bias": false,
    "mlp_bias": false, "bos_token_id": 128000, "eos_token_id": 128001})");
}

// `base` with the keys of `changes` set.
json With(json base, const json& changes) {
  for (const auto& [key, value] : changes.items()) base[key] = value;
  return base;
}
json Without(json base, const char* key) {
  base.erase(key);
  return base;
}
json As(const char* architecture) {
  return With(Llama(), {{"architectures", {architecture}}});
}

ModelConfig Parse(const json& config, const std::string& generation = "") {
  auto parsed = ParseModelConfig(config.dump(), generation);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *std::move(parsed) : ModelConfig();
}

std::string ErrorOf(const json& config) {
  const auto parsed = ParseModelConfig(config.dump(), "");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << config;
  return std::string(Message(parsed.status()));
}

TEST(ModelConfigTest, ReadsLlama) {
  const ModelConfig config = Parse(Llama());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.intermediate_size, 8192);
  EXPECT_EQ(config.num_layers, 16);
  EXPECT_EQ(config.q_heads, 32);
  EXPECT_EQ(config.kv_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.trained_length, 131072);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.output_bias || config.mlp_bias || config.qk_norm);
  EXPECT_EQ(config.rotate, std::vector<bool>(16, true));
  EXPECT_EQ(config.bos_ids, std::vector<int32_t>{128000});
  EXPECT_EQ(config.eos_ids, std::vector<int32_t>{128001});
  EXPECT_EQ(config.rope_scale, 1.0f);
  ASSERT_EQ(config.rope_inv_freq.size(), 32U);
  for (int i = 0; i < 32; ++i) {
    EXPECT_FLOAT_EQ(config.rope_inv_freq[i], static_cast<float>(std::pow(500000.0, -i / 32.0)));
  }
}

TEST(ModelConfigTest, FillsInWhatIsAbsentOrNull) {
  json config = Llama();
  for (const char* key : {"num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
                          "rope_theta", "rope_scaling", "tie_word_embeddings", "attention_bias",
                          "mlp_bias", "bos_token_id", "eos_token_id"}) {
    config.erase(key);
    json null = Llama();
    null[key] = nullptr;
    EXPECT_TRUE(ParseModelConfig(null.dump(), "").ok()) << key;
  }
  const ModelConfig parsed = Parse(config);
  EXPECT_EQ(parsed.kv_heads, 32);
  EXPECT_EQ(parsed.head_dim, 64);
  EXPECT_FLOAT_EQ(parsed.rms_norm_eps, 1e-6f);
  EXPECT_FALSE(parsed.tied_embeddings);
  EXPECT_FLOAT_EQ(parsed.rope_inv_freq[16], 1e-2f);
  EXPECT_TRUE(parsed.bos_ids.empty());
  EXPECT_TRUE(parsed.eos_ids.empty());
}

TEST(ModelConfigTest, KnowsWhatArchitecturesDifferIn) {
  const json biased = {{"attention_bias", true}, {"mlp_bias", true}};
  const ModelConfig llama = Parse(With(Llama(), biased));
  EXPECT_TRUE(llama.qkv_bias && llama.output_bias && llama.mlp_bias);

  const json mistral = With(As("MistralForCausalLM"), {{"sliding_window", nullptr}});
  const ModelConfig mistral_config = Parse(With(mistral, biased));
  EXPECT_FALSE(mistral_config.qkv_bias || mistral_config.output_bias || mistral_config.mlp_bias);

  const ModelConfig qwen2 = Parse(As("Qwen2ForCausalLM"));
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.qk_norm);

  const ModelConfig qwen3 = Parse(Without(As("Qwen3ForCausalLM"), "head_dim"));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);

  json smol = As("SmolLM3ForCausalLM");
  smol.erase("tie_word_embeddings");
  smol.erase("rope_theta");
  const ModelConfig smol3 = Parse(smol);
  EXPECT_TRUE(smol3.tied_embeddings);
  EXPECT_FLOAT_EQ(smol3.rope_inv_freq[16], static_cast<float>(1.0 / std::sqrt(2e6)));
  for (int i = 0; i < 16; ++i) EXPECT_EQ(smol3.rotate[i], i % 4 != 3) << i;
}

TEST(ModelConfigTest, ReadsLayersWithoutRotation) {
  const json smol = With(As("SmolLM3ForCausalLM"), {{"num_hidden_layers", 3}});
  EXPECT_EQ(Parse(With(smol, {{"no_rope_layers", {1, 0, 1}}})).rotate,
            (std::vector<bool>{true, false, true}));
  EXPECT_EQ(Parse(With(smol, {{"no_rope_layer_interval", 2}})).rotate,
            (std::vector<bool>{true, false, true}));
  EXPECT_THAT(ErrorOf(With(smol, {{"no_rope_layers", {1, 0}}})),
              AllOf(HasSubstr("no_rope_layers"), HasSubstr("3 entries")));
  EXPECT_THAT(ErrorOf(With(smol, {{"no_rope_layers", {1, 0, 2}}})), HasSubstr("not 2"));
}

TEST(ModelConfigTest, GenerationConfigExtendsTheEndTokens) {
  EXPECT_EQ(Parse(Llama(), R"({"eos_token_id": [128001, 128008, 128009]})").eos_ids,
            (std::vector<int32_t>{128001, 128008, 128009}));
  EXPECT_EQ(Parse(Llama(), R"({"eos_token_id": 7, "bos_token_id": 128000})").bos_ids,
            std::vector<int32_t>{128000});
  for (const char* bad : {"[]", "{", R"({"eos_token_id": "</s>"})", R"({"eos_token_id": -1})",
                          R"({"eos_token_id": [128256]})"}) {
    const auto parsed = ParseModelConfig(Llama().dump(), bad);
    EXPECT_THAT(std::string(Message(parsed.status())), StartsWith("generation_config.json: "));
  }
}

TEST(ModelConfigTest, ScalesRopeLinearly) {
  const auto expect_quarter = [](const json& config) {
    const ModelConfig plain = Parse(Llama());
    const ModelConfig scaled = Parse(config);
    for (int i = 0; i < 32; ++i) {
      EXPECT_FLOAT_EQ(scaled.rope_inv_freq[i], plain.rope_inv_freq[i] / 4);
    }
  };
  expect_quarter(With(Llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}));
  expect_quarter(With(Llama(), {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 4}}}}));
  expect_quarter(With(
      Without(Without(Llama(), "rope_theta"), "rope_scaling"),
      {{"rope_parameters", {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 500000.0}}}}));
}

TEST(ModelConfigTest, ScalesRopeLikeLlama3) {
  const json scaling = {{"rope_type", "llama3"},
                        {"factor", 32.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  const ModelConfig plain = Parse(Llama());
  const ModelConfig scaled = Parse(With(Llama(), {{"rope_scaling", scaling}}));
  int blended = 0;
  for (int i = 0; i < 32; ++i) {
    const float ratio = scaled.rope_inv_freq[i] / plain.rope_inv_freq[i];
    const double wavelength = 2 * std::acos(-1.0) / plain.rope_inv_freq[i];
    if (wavelength < 8192 / 4.0) {
      EXPECT_FLOAT_EQ(ratio, 1.0f);
    } else if (wavelength > 8192) {
      EXPECT_FLOAT_EQ(ratio, 1.0f / 32);
    } else {
      EXPECT_GT(ratio, 1.0f / 32);
      EXPECT_LT(ratio, 1.0f);
      ++blended;
    }
  }
  EXPECT_GT(blended, 0);
  EXPECT_EQ(scaled.rope_scale, 1.0f);
}

TEST(ModelConfigTest, ScalesRopeWithYarn) {
  const auto yarn = [](const json& changes) {
    const json scaling = {
        {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
    return Parse(With(Llama(), {{"rope_scaling", With(scaling, changes)}}));
  };
  const ModelConfig plain = Parse(Llama());
  const ModelConfig scaled = yarn(json::object());
  EXPECT_FLOAT_EQ(scaled.rope_inv_freq.front(), plain.rope_inv_freq.front());
  EXPECT_FLOAT_EQ(scaled.rope_inv_freq.back(), plain.rope_inv_freq.back() / 4);
  EXPECT_FLOAT_EQ(scaled.rope_scale, 0.1f * std::log(4.0f) + 1.0f);
  EXPECT_EQ(yarn({{"factor", nullptr}}).rope_inv_freq, scaled.rope_inv_freq);  // 131072 / 32768
  EXPECT_NE(yarn({{"beta_fast", 8.0}}).rope_inv_freq, scaled.rope_inv_freq);
  EXPECT_NE(yarn({{"beta_slow", 4.0}}).rope_inv_freq, scaled.rope_inv_freq);
  EXPECT_NE(yarn({{"truncate", false}}).rope_inv_freq, scaled.rope_inv_freq);
  EXPECT_FLOAT_EQ(yarn({{"attention_factor", 1.5}}).rope_scale, 1.5f);
  EXPECT_FLOAT_EQ(yarn({{"mscale", 0.7}, {"mscale_all_dim", 0.7}}).rope_scale, 1.0f);
  EXPECT_FLOAT_EQ(yarn({{"mscale", 1.0}, {"mscale_all_dim", 0.5}}).rope_scale,
                  (0.1f * std::log(4.0f) + 1.0f) / (0.05f * std::log(4.0f) + 1.0f));
}

TEST(ModelConfigTest, RefusesRopeItCannotCompute) {
  const auto error_of = [](const json& scaling) {
    return ErrorOf(With(Llama(), {{"rope_scaling", scaling}}));
  };
  EXPECT_THAT(error_of({{"rope_type", "longrope"}}),
              AllOf(HasSubstr("rope_type is \"longrope\""), HasSubstr("default, linear, llama3")));
  EXPECT_THAT(error_of({{"type", "dynamic"}, {"factor", 2.0}}), HasSubstr("type is \"dynamic\""));
  EXPECT_THAT(error_of({{"type", 7}}), HasSubstr("type is 7"));
  EXPECT_THAT(error_of({{"type", "linear"}}), HasSubstr("factor is missing"));
  EXPECT_THAT(error_of({{"type", "linear"}, {"factor", 0.0}}), HasSubstr("factor is 0.0"));
  EXPECT_THAT(error_of({{"type", "llama3"}, {"factor", 2}}),
              HasSubstr("low_freq_factor is missing"));
  EXPECT_THAT(
      error_of(
          {{"type", "llama3"}, {"factor", 2}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}),
      HasSubstr("high_freq_factor is 4; it must exceed low_freq_factor 4"));
  EXPECT_THAT(error_of({{"type", "yarn"}, {"factor", -1}}), HasSubstr("factor is -1"));
  EXPECT_THAT(error_of({{"type", "yarn"}, {"factor", 2}, {"original_max_position_embeddings", 0}}),
              HasSubstr("original_max_position_embeddings is 0"));
  EXPECT_THAT(error_of("linear"), HasSubstr("rope_scaling is \"linear\"; it must be an object"));
  EXPECT_THAT(ErrorOf(With(Llama(), {{"rope_theta", 0}})), HasSubstr("rope_theta is 0"));
  EXPECT_THAT(ErrorOf(With(Llama(), {{"partial_rotary_factor", 0.5}})),
              HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(error_of({{"partial_rotary_factor", 0.5}}),
              HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(
      ErrorOf(With(Llama(), {{"rope_parameters", {{"full_attention", {{"rope_theta", 1e6}}}}}})),
      HasSubstr("rope_parameters is an object"));
}

TEST(ModelConfigTest, RefusesASlidingWindowThatMatters) {
  const json mistral = With(As("MistralForCausalLM"), {{"sliding_window", 4096}});
  EXPECT_THAT(ErrorOf(mistral), AllOf(HasSubstr("sliding_window is 4096"),
                                      HasSubstr("max_position_embeddings 131072")));
  EXPECT_THAT(ErrorOf(As("MistralForCausalLM")), HasSubstr("sliding_window is absent"));
  Parse(With(mistral, {{"sliding_window", nullptr}}));
  Parse(With(mistral, {{"sliding_window", 131072}}));

  for (const char* name : {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"}) {
    const json window = With(As(name), {{"sliding_window", 4096}});
    Parse(window);
    Parse(With(window, {{"use_sliding_window", false}}));
    const json used = With(window, {{"use_sliding_window", true}});
    EXPECT_THAT(ErrorOf(used), HasSubstr("sliding_window is 4096"));
    Parse(With(used, {{"layer_types", {"full_attention", "full_attention"}}}));
    EXPECT_THAT(ErrorOf(With(used, {{"layer_types", {"full_attention", "sliding_attention"}}})),
                HasSubstr("sliding_window is 4096"));
  }
}

TEST(ModelConfigTest, RefusesWhatItDoesNotKnow) {
  for (const json& architectures : {json{"GPT2LMHeadModel"}, json(), json::array(), json{7},
                                    json("LlamaForCausalLM"), json{"LlamaForCausalLM", "Other"}}) {
    EXPECT_THAT(ErrorOf(With(Llama(), {{"architectures", architectures}})),
                AllOf(HasSubstr("config.json: architectures is"), HasSubstr("Qwen3ForCausalLM")));
  }
  EXPECT_THAT(ErrorOf(As("GPT2LMHeadModel")), HasSubstr("GPT2LMHeadModel"));
  EXPECT_THAT(ErrorOf(With(Llama(), {{"hidden_act", "gelu"}})),
              HasSubstr("hidden_act is \"gelu\"; only silu is supported"));
  EXPECT_THAT(ErrorOf(With(Llama(), {{"quantization_config", {{"bits", 4}}}})),
              HasSubstr("quantization_config"));
}

TEST(ModelConfigTest, RefusesImpossibleGeometry) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim"}) {
    for (const json& bad : {json(0), json(-1), json(1.5), json("64"), json(true), json::array({64}),
                            json(int64_t{1} << 62), json(UINT64_MAX)}) {
      EXPECT_THAT(ErrorOf(With(Llama(), {{key, bad}})), HasSubstr(std::string(key) + " is "));
    }
  }
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    EXPECT_THAT(ErrorOf(Without(Llama(), key)), HasSubstr(std::string(key) + " is missing"));
  }
  EXPECT_THAT(ErrorOf(With(Llama(), {{"num_key_value_heads", 5}})),
              HasSubstr("num_key_value_heads is 5; it must divide num_attention_heads 32"));
  EXPECT_THAT(ErrorOf(With(Without(Llama(), "head_dim"), {{"hidden_size", 2049}})),
              HasSubstr("must divide hidden_size 2049"));
  EXPECT_THAT(ErrorOf(With(Without(Llama(), "head_dim"), {{"hidden_size", 32 * 33}})),
              HasSubstr("33"));
  for (int head_dim : {4, 63, 68, 520}) {
    EXPECT_THAT(ErrorOf(With(Llama(), {{"head_dim", head_dim}})),
                HasSubstr("head_dim is " + std::to_string(head_dim)));
  }
  EXPECT_THAT(ErrorOf(With(Llama(), {{"eos_token_id", 128256}})),
              HasSubstr("eos_token_id is 128256"));
  EXPECT_THAT(ErrorOf(With(Llama(), {{"tie_word_embeddings", "yes"}})),
              HasSubstr("tie_word_embeddings is \"yes\""));
}

TEST(ModelConfigTest, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\": 1, \"a\": 2}", "{\"a\": \"\xFF\"}"}) {
    const auto parsed = ParseModelConfig(text, "");
    EXPECT_THAT(std::string(Message(parsed.status())), StartsWith("config.json: ")) << text;
  }
}

// Whatever is taken has a geometry that the forward pass can be sized for.
TEST(ModelConfigTest, SurvivesRandomDamage) {
  const std::string text =
      With(Llama(), {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}).dump();
  std::mt19937 random(1);
  for (int round = 0; round < 8000; ++round) {
    std::string damaged = text;
    for (uint32_t edits = 1 + random() % 3; edits > 0; --edits) {
      const char byte = static_cast<char>("0123456789-.e\"[]{}"[random() % 18]);
      damaged[random() % damaged.size()] = byte;
    }
    const auto config = ParseModelConfig(damaged, "");
    if (!config.ok()) continue;
    EXPECT_EQ(config->q_heads % config->kv_heads, 0);
    EXPECT_EQ(config->rope_inv_freq.size(), static_cast<size_t>(config->head_dim / 2));
    EXPECT_EQ(config->rotate.size(), static_cast<size_t>(config->num_layers));
    EXPECT_TRUE(std::isfinite(config->rope_scale));
    for (float frequency : config->rope_inv_freq) EXPECT_TRUE(std::isfinite(frequency));
  }
}

}  // namespace
}  // namespace everlong
