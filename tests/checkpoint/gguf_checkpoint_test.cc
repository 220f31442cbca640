#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>

#include "engine/checkpoint.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoint/checkpoint_files.h"
#include "tests/checkpoint/gguf_files.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kHidden = 32;
constexpr int64_t kHeadDim = 8;
constexpr int64_t kHeads = 2;

// f32 values 0, 1, 2 ...
std::string Counting(int64_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0f);
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Q4_0 blocks whose first byte is their row.
std::string NumberedRows(int64_t rows) {
  std::string bytes;
  for (int64_t row = 0; row < rows; ++row) bytes += static_cast<char>(row) + std::string(17, '\0');
  return bytes;
}

void AddGeometry(const std::string& architecture, GgufBuilder& file) {
  const auto set = [&](const char* key, auto value) { file.Set(architecture + "." + key, value); };
  file.Set("general.architecture", architecture);
  set("block_count", uint32_t{1});
  set("context_length", uint32_t{64});
  set("embedding_length", uint32_t{kHidden});
  set("feed_forward_length", uint32_t{kHidden});
  set("attention.head_count", uint32_t{kHeads});
  set("attention.head_count_kv", uint32_t{1});
  set("attention.key_length", uint32_t{kHeadDim});
  set("attention.layer_norm_rms_epsilon", 1e-5f);
}

// A model of one layer.
GgufBuilder ModelFile(const std::string& architecture) {
  GgufBuilder file;
  AddGeometry(architecture, file);
  file.Set("tokenizer.ggml.model", "gpt2");
  file.Set("tokenizer.ggml.pre", "gpt-2");
  file.Set("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab"});
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
  file.Set("tokenizer.chat_template", "{{ messages }}");
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    const int64_t count =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies());
    file.AddTensor(name, GgmlType::kF32, std::move(shape), Counting(count));
  };
  add("token_embd.weight", {3, kHidden});
  add("output_norm.weight", {kHidden});
  add("blk.0.attn_norm.weight", {kHidden});
  add("blk.0.ffn_norm.weight", {kHidden});
  add("blk.0.attn_q.weight", {kHeads * kHeadDim, kHidden});
  add("blk.0.attn_k.weight", {kHeadDim, kHidden});
  add("blk.0.attn_v.weight", {kHeadDim, kHidden});
  add("blk.0.attn_output.weight", {kHidden, kHeads * kHeadDim});
  for (const char* name : {"ffn_gate", "ffn_up", "ffn_down"}) {
    add(fmt::format("blk.0.{}.weight", name), {kHidden, kHidden});
  }
  return file;
}

class GgufCheckpointTest : public testing::Test {
 protected:
  std::unique_ptr<Checkpoint> Open() {
    directory_.Write("model.gguf", file_.Bytes());
    auto checkpoint = Checkpoint::Open(directory_ / "model.gguf");
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }
  std::string OpenError() {
    directory_.Write("model.gguf", file_.Bytes());
    const auto checkpoint = Checkpoint::Open(directory_ / "model.gguf");
    EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument)
        << checkpoint.status();
    EXPECT_THAT(Message(checkpoint.status()), HasSubstr("/model.gguf: "));
    return std::string(Message(checkpoint.status()));
  }

  GgufBuilder file_ = ModelFile("llama");
  TemporaryDirectory directory_;
};

TEST_F(GgufCheckpointTest, ReadsTheGeometry) {
  const auto checkpoint = Open();
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.vocab_size, 3);
  EXPECT_EQ(config.hidden_size, kHidden);
  EXPECT_EQ(config.num_layers, 1);
  EXPECT_EQ(config.q_heads, kHeads);
  EXPECT_EQ(config.kv_heads, 1);
  EXPECT_EQ(config.head_dim, kHeadDim);
  EXPECT_EQ(config.trained_length, 64);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
  EXPECT_EQ(config.rope_inv_freq[1], std::pow(10000.0f, -0.25f));
  EXPECT_EQ(checkpoint->chat_template(), "{{ messages }}");
  EXPECT_THAT(checkpoint->tokenizer_json(), HasSubstr("\"ab\":2"));
}

TEST_F(GgufCheckpointTest, GivesTensorsByTheirHuggingFaceNames) {
  file_.AddTensor("output.weight", GgmlType::kQ8_0, {3, kHidden}, std::string(3 * 34, 'o'));
  const auto checkpoint = Open();
  EXPECT_FALSE(checkpoint->config().tied_embeddings);
  const auto head = checkpoint->Tensor("lm_head.weight", 3, kHidden);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->type, DType::kQ8_0);
  EXPECT_EQ(*static_cast<const char*>(head->data), 'o');
  const auto norm =
      checkpoint->Tensor("model.layers.0.post_attention_layernorm.weight", 1, kHidden);
  ASSERT_TRUE(norm.ok()) << norm.status();
  EXPECT_EQ(std::memcmp(norm->data, Counting(kHidden).data(), kHidden * sizeof(float)), 0);
  EXPECT_TRUE(checkpoint->Tensor("model.layers.0.mlp.down_proj.weight", kHidden, kHidden).ok());
}

TEST_F(GgufCheckpointTest, PutsRotatedRowsBackInHalves) {
  file_.AddTensor("blk.0.attn_q.weight", GgmlType::kQ4_0, {kHeads * kHeadDim, kHidden},
                  NumberedRows(kHeads * kHeadDim));
  file_.AddTensor("blk.0.attn_q.bias", GgmlType::kF32, {kHeads * kHeadDim},
                  Counting(kHeads * kHeadDim));
  file_.AddTensor("blk.0.attn_k.bias", GgmlType::kF32, {kHeadDim}, Counting(kHeadDim));
  file_.AddTensor("blk.0.attn_v.bias", GgmlType::kF32, {kHeadDim}, Counting(kHeadDim));
  const std::vector<int> order = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  const auto checkpoint = Open();
  const auto rows = checkpoint->Tensor("model.layers.0.self_attn.q_proj.weight", 16, kHidden);
  const auto bias = checkpoint->Tensor("model.layers.0.self_attn.q_proj.bias", 1, 16);
  ASSERT_TRUE(rows.ok() && bias.ok()) << rows.status() << bias.status();
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(static_cast<const char*>(rows->data)[18 * i], order[i]);
    EXPECT_EQ(static_cast<const float*>(bias->data)[i], static_cast<float>(order[i]));
  }
  const auto values = checkpoint->Tensor("model.layers.0.self_attn.v_proj.bias", 1, kHeadDim);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(std::memcmp(values->data, Counting(kHeadDim).data(), kHeadDim * sizeof(float)), 0);
}

TEST_F(GgufCheckpointTest, LeavesRowsOfQwenInTheirOrder) {
  file_ = ModelFile("qwen2");
  const auto checkpoint = Open();
  const auto rows = checkpoint->Tensor("model.layers.0.self_attn.q_proj.weight", 16, kHidden);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(static_cast<const float*>(rows->data)[kHidden], static_cast<float>(kHidden));
  EXPECT_EQ(rows->owner, nullptr);
}

TEST_F(GgufCheckpointTest, ScalesTheRotation) {
  const std::vector<float> plain = Open()->config().rope_inv_freq;
  file_.Set("llama.rope.scaling.type", "linear");
  file_.Set("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(Open()->config().rope_inv_freq[2], plain[2] / 4);
  file_.Set("llama.rope.scaling.type", "none");
  const std::vector<float> factors = {1.0f, 2.0f, 4.0f, 8.0f};
  file_.AddTensor("rope_freqs.weight", GgmlType::kF32, {4},
                  {reinterpret_cast<const char*>(factors.data()), 16});
  EXPECT_EQ(Open()->config().rope_inv_freq[3], plain[3] / 8);
  file_.AddTensor("rope_freqs.weight", GgmlType::kF32, {4}, Counting(4));
  EXPECT_THAT(OpenError(), HasSubstr("tensor \"rope_freqs.weight\""));
  file_.AddTensor("rope_freqs.weight", GgmlType::kF32, {5}, Counting(5));
  EXPECT_THAT(OpenError(), HasSubstr("F32 of shape [5]"));
}

TEST_F(GgufCheckpointTest, NamesTheKeyThatDoesNotFit) {
  const std::vector<std::pair<const char*, uint32_t>> wrong = {
      {"block_count", 0},          {"embedding_length", 0},         {"attention.head_count_kv", 3},
      {"attention.key_length", 7}, {"attention.value_length", 16},  {"rope.dimension_count", 4},
      {"expert_count", 8},         {"attention.sliding_window", 16}};
  for (const auto& [key, value] : wrong) {
    file_ = ModelFile("llama");
    file_.Set(std::string("llama.") + key, value);
    EXPECT_THAT(OpenError(), HasSubstr(fmt::format("llama.{} is {}", key, value)));
  }
  file_ = ModelFile("llama");
  file_.Unset("llama.context_length");
  EXPECT_THAT(OpenError(), HasSubstr("metadata: llama.context_length is missing"));
  file_ = ModelFile("llama");
  file_.Set("llama.attention.head_count", std::vector<int32_t>{2, 4});
  EXPECT_THAT(OpenError(), HasSubstr("llama.attention.head_count is an array"));
  file_ = ModelFile("llama");
  file_.Set("llama.rope.scaling.type", "longrope");
  EXPECT_THAT(OpenError(), HasSubstr("\"longrope\""));
  file_ = ModelFile("llama");
  file_.Set("split.count", uint32_t{2});
  EXPECT_THAT(OpenError(), HasSubstr("split.count is 2"));
}

TEST_F(GgufCheckpointTest, NamesAnArchitectureThatIsNotSupported) {
  file_ = ModelFile("gemma3");
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("general.architecture is \"gemma3\""),
                                 HasSubstr("llama, qwen2, qwen3, smollm3")));
  file_.Unset("general.architecture");
  EXPECT_THAT(OpenError(), HasSubstr("general.architecture is missing"));
}

TEST_F(GgufCheckpointTest, RefusesTensorsThatTheModelDoesNotHave) {
  for (const char* name : {"blk.0.attn_q_norm.weight", "blk.1.attn_norm.weight", "output.bias",
                           "blk.0.attn_norm.bias", "rope_factors_long.weight"}) {
    file_ = ModelFile("llama");
    file_.AddTensor(name, GgmlType::kF32, {4}, Counting(4));
    EXPECT_THAT(OpenError(), AllOf(HasSubstr(name), HasSubstr("none that a LlamaForCausalLM")));
  }
}

TEST_F(GgufCheckpointTest, NamesTheTensorThatDoesNotFit) {
  file_.AddTensor("blk.0.attn_v.weight", GgmlType::kIq2Xs, {8, 256}, "");
  file_.AddTensor("output_norm.weight", GgmlType::kQ4_0, {kHidden}, std::string(18, '\0'));
  file_.RemoveTensor("blk.0.ffn_up.weight");
  const auto checkpoint = Open();
  const auto values = checkpoint->Tensor("model.layers.0.self_attn.v_proj.weight", 8, kHidden);
  EXPECT_THAT(Message(values.status()),
              AllOf(HasSubstr("/model.gguf: tensor \"blk.0.attn_v.weight\""),
                    HasSubstr("type IQ2_XS is not supported"), HasSubstr("Q4_K")));
  EXPECT_THAT(Message(checkpoint->Tensor("model.norm.weight", 1, kHidden).status()),
              HasSubstr("vector of type Q4_0"));
  const auto missing = checkpoint->Tensor("model.layers.0.mlp.up_proj.weight", kHidden, kHidden);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing.status()), HasSubstr("tensor \"blk.0.ffn_up.weight\" is missing"));
  EXPECT_THAT(Message(checkpoint->Tensor("model.embed_tokens.weight", kHidden, 3).status()),
              AllOf(HasSubstr("\"token_embd.weight\""), HasSubstr("shape is [3, 32]")));
}

TEST_F(GgufCheckpointTest, FindsTheOnlyFileOfADirectory) {
  directory_.Write("one.gguf", file_.Bytes());
  EXPECT_TRUE(Checkpoint::Open(directory_.path()).ok());
  directory_.Write("two.gguf", file_.Bytes());
  EXPECT_THAT(Message(Checkpoint::Open(directory_.path()).status()),
              HasSubstr("2 GGUF files are there"));
  directory_.Write("config.json", "{}");
  EXPECT_THAT(Message(Checkpoint::Open(directory_.path()).status()), HasSubstr("config.json"));
}

TEST_F(GgufCheckpointTest, NeedsNoSuffix) {
  directory_.Write("0123abcd", file_.Bytes());
  EXPECT_TRUE(Checkpoint::Open(directory_ / "0123abcd").ok());
}

}  // namespace
}  // namespace everlong
