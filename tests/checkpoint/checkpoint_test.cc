#include "engine/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <string>

#include "engine/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "nlohmann/json.hpp"
#include "tests/checkpoint/checkpoint_files.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kNeedle[] = EVERLONG_SOURCE_DIR "/models/needle-7m";

constexpr char kConfig[] = R"({
  "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "hidden_size": 2,
  "intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8,
  "max_position_embeddings": 64})";

TensorSpec Embedding() {
  return {"model.embed_tokens.weight", "BF16", {4, 2}, std::string(16, '\x3F')};
}
TensorSpec Norm() {
  return {"model.norm.weight", "F32", {2}, std::string(8, '\0')};
}

// A directory that opens; tests then change one file of it.
class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    directory_.Write("config.json", kConfig);
    directory_.Write("tokenizer.json", "{\"tokens\": 1}");
    directory_.Write("model.safetensors", SafetensorsBytes({Embedding(), Norm()}));
  }

  void WriteShards() {
    directory_.Remove("model.safetensors");
    directory_.Write("a.safetensors", SafetensorsBytes({Embedding()}));
    directory_.Write("b.safetensors", SafetensorsBytes({Norm()}));
    WriteIndex(
        {{"model.embed_tokens.weight", "a.safetensors"}, {"model.norm.weight", "b.safetensors"}});
  }
  void WriteIndex(const nlohmann::json& weight_map) {
    directory_.Write("model.safetensors.index.json",
                     nlohmann::json{{"weight_map", weight_map}}.dump());
  }

  std::unique_ptr<Checkpoint> Open() {
    auto checkpoint = Checkpoint::Open(directory_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }
  // The message of the error that opening ends in, after its code.
  std::string OpenError(absl::StatusCode code) {
    const auto checkpoint = Checkpoint::Open(directory_.path());
    EXPECT_EQ(checkpoint.status().code(), code) << checkpoint.status();
    return std::string(Message(checkpoint.status()));
  }
  std::string Damaged() { return OpenError(absl::StatusCode::kInvalidArgument); }
  std::string Missing() { return OpenError(absl::StatusCode::kNotFound); }

  TemporaryDirectory directory_;
};

TEST(NeedleCheckpointTest, Opens) {
  const auto opened = Checkpoint::Open(kNeedle);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  EXPECT_EQ(checkpoint.config().num_layers, 8);
  EXPECT_EQ(checkpoint.config().head_dim, 64);
  EXPECT_EQ(checkpoint.config().eos_ids, std::vector<int32_t>{0});
  EXPECT_TRUE(checkpoint.config().tied_embeddings);
  EXPECT_THAT(checkpoint.tokenizer_json(), HasSubstr("\"model\""));
  const auto embedding = checkpoint.Tensor("model.embed_tokens.weight", 4096, 256);
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  EXPECT_EQ(embedding->type, DType::kBF16);
  EXPECT_TRUE(checkpoint.Tensor("model.layers.7.input_layernorm.weight", 1, 256).ok());
}

TEST_F(CheckpointTest, GivesTensorsOfOneFile) {
  const auto checkpoint = Open();
  const auto embedding = checkpoint->Tensor("model.embed_tokens.weight", 4, 2);
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  uint16_t last;
  std::memcpy(&last, static_cast<const char*>(embedding->data) + 14, 2);
  EXPECT_EQ(last, 0x3F3F);
  EXPECT_EQ(embedding->rows, 4);
  EXPECT_EQ(embedding->cols, 2);
  EXPECT_TRUE(checkpoint->Tensor("model.norm.weight", 1, 2).ok());
}

TEST_F(CheckpointTest, GivesTensorsOfShards) {
  WriteShards();
  const auto checkpoint = Open();
  EXPECT_TRUE(checkpoint->Tensor("model.embed_tokens.weight", 4, 2).ok());
  EXPECT_TRUE(checkpoint->Tensor("model.norm.weight", 1, 2).ok());
}

TEST_F(CheckpointTest, FollowsSymbolicLinks) {
  const TemporaryDirectory blobs;
  blobs.Write("0123abcd", SafetensorsBytes({Embedding(), Norm()}));
  directory_.Remove("model.safetensors");
  std::filesystem::create_symlink(blobs / "0123abcd", directory_ / "model.safetensors");
  EXPECT_TRUE(Open()->Tensor("model.norm.weight", 1, 2).ok());
  blobs.Remove("0123abcd");
  EXPECT_THAT(Missing(), HasSubstr("neither model.safetensors nor"));
}

TEST_F(CheckpointTest, NamesTheTensorThatDoesNotFit) {
  const auto checkpoint = Open();
  const auto missing = checkpoint->Tensor("lm_head.weight", 4, 2);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing.status()),
              AllOf(HasSubstr("/model.safetensors"), HasSubstr("\"lm_head.weight\" is missing")));
  for (const auto& [rows, cols] : {std::pair{2, 4}, {4, 3}, {1, 8}}) {
    const auto other = checkpoint->Tensor("model.embed_tokens.weight", rows, cols);
    EXPECT_EQ(other.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(other.status()),
                AllOf(HasSubstr("/model.safetensors: tensor \"model.embed_tokens.weight\""),
                      HasSubstr("shape is [4, 2]")));
  }
  EXPECT_FALSE(checkpoint->Tensor("model.norm.weight", 2, 1).ok());
}

TEST_F(CheckpointTest, NamesAnUnsupportedElementTypeOnlyWhenAskedForIt) {
  const TensorSpec buffer = {"rotary.inv_freq", "F64", {2}, std::string(16, '\0')};
  const TensorSpec packed = {"lm_head.weight", "F8_E4M3", {4, 2}, std::string(8, '\0')};
  directory_.Write("model.safetensors", SafetensorsBytes({Embedding(), buffer, packed}));
  const auto checkpoint = Open();
  EXPECT_TRUE(checkpoint->Tensor("model.embed_tokens.weight", 4, 2).ok());
  const auto refused = checkpoint->Tensor("lm_head.weight", 4, 2);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused.status()),
              AllOf(HasSubstr("lm_head.weight"), HasSubstr("F8_E4M3"), HasSubstr("BF16")));
}

TEST_F(CheckpointTest, NamesTheFileThatIsMissing) {
  for (const char* name : {"config.json", "tokenizer.json"}) {
    std::filesystem::rename(directory_ / name, directory_ / "aside");
    EXPECT_THAT(Missing(), HasSubstr(name));
    std::filesystem::rename(directory_ / "aside", directory_ / name);
  }
  directory_.Remove("model.safetensors");
  EXPECT_THAT(Missing(), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_EQ(Checkpoint::Open(directory_ / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(Checkpoint::Open(directory_ / "config.json").status()),
              HasSubstr("not a GGUF file"));
}

TEST_F(CheckpointTest, NamesTheDamagedFile) {
  directory_.Write("model.safetensors", "GGUF");
  EXPECT_THAT(Damaged(), HasSubstr("/model.safetensors: "));
  directory_.Remove("model.safetensors");
  std::filesystem::create_directory(directory_ / "model.safetensors");
  EXPECT_THAT(Damaged(), HasSubstr("/model.safetensors: not a regular file"));
  directory_.Write("config.json", "{");
  EXPECT_THAT(Damaged(), HasSubstr("/config.json: not JSON"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatDoesNotHold) {
  WriteShards();
  directory_.Remove("b.safetensors");
  EXPECT_THAT(Missing(), HasSubstr("/b.safetensors: No such file"));
  WriteIndex({{"model.norm.weight", "a.safetensors"}});
  EXPECT_THAT(Damaged(), AllOf(HasSubstr("index.json"), HasSubstr("\"model.norm.weight\" is not"),
                               HasSubstr("/a.safetensors")));
  for (const char* name : {"../a.safetensors", "/etc/passwd", "sub/a.safetensors"}) {
    WriteIndex({{"model.norm.weight", name}});
    EXPECT_THAT(Damaged(), HasSubstr(name));
  }
  for (const char* name : {"", ".", ".."}) {
    WriteIndex({{"model.norm.weight", name}});
    EXPECT_THAT(Damaged(), HasSubstr("not a regular file"));
  }
  WriteIndex({{"model.norm.weight", 7}});
  EXPECT_THAT(Damaged(), HasSubstr("model.norm.weight"));
  WriteIndex(nlohmann::json::array({1}));
  EXPECT_THAT(Damaged(), HasSubstr("weight_map"));
  directory_.Write("model.safetensors.index.json", "{\"weight_map\": {}} trailing");
  EXPECT_THAT(Damaged(), HasSubstr("index.json: not JSON"));
}

TEST_F(CheckpointTest, ReadsGenerationConfig) {
  directory_.Write("generation_config.json", R"({"eos_token_id": [3, 2]})");
  EXPECT_EQ(Open()->config().eos_ids, (std::vector<int32_t>{3, 2}));
  directory_.Write("generation_config.json", R"({"eos_token_id": 4})");
  EXPECT_THAT(Damaged(), HasSubstr("/generation_config.json: eos_token_id"));
}

TEST_F(CheckpointTest, FindsTheChatTemplate) {
  EXPECT_EQ(Open()->chat_template(), "");
  directory_.Write("tokenizer_config.json", R"({"add_bos_token": true})");
  EXPECT_EQ(Open()->chat_template(), "");
  directory_.Write("tokenizer_config.json", R"({"chat_template": "plain"})");
  EXPECT_EQ(Open()->chat_template(), "plain");
  directory_.Write("tokenizer_config.json", R"({"chat_template": [
      {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]})");
  EXPECT_EQ(Open()->chat_template(), "named");
  directory_.Write("chat_template.jinja", "alone");
  EXPECT_EQ(Open()->chat_template(), "alone");
  directory_.Remove("chat_template.jinja");
  directory_.Write("tokenizer_config.json", "[]");
  EXPECT_THAT(Damaged(), HasSubstr("/tokenizer_config.json: not a JSON object"));
}

}  // namespace
}  // namespace everlong
