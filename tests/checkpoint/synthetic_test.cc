#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/status.h"
#include "engine/synthetic_checkpoint.h"
#include "engine/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Checkpoint> Open(const std::string& name) {
  auto checkpoint = Checkpoint::Open(name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::string ErrorOf(const std::string& name) {
  const auto checkpoint = Checkpoint::Open(name);
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(Message(checkpoint.status()));
}

std::vector<float> Values(const HostMatrix& matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  const auto* row = static_cast<const std::byte*>(matrix.data);
  for (int64_t i = 0; i < matrix.rows; ++i, row += RowBytes(matrix.type, matrix.cols)) {
    DequantizeRow(matrix.type, row, matrix.cols, values.data() + i * matrix.cols);
  }
  return values;
}

TEST(SyntheticTest, HasTheGeometryOfThatName) {
  const auto checkpoint = Open("synthetic:llama-3.1-8b");
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.num_layers, 32);
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.trained_length, 131072);
  EXPECT_TRUE(config.eos_ids.empty());
  EXPECT_TRUE(Open("synthetic:qwen3-8b")->config().qk_norm);
  EXPECT_TRUE(Open("synthetic:llama-3.2-1b")->config().tied_embeddings);
  EXPECT_EQ(Open("synthetic:smollm2-135m,layers=2,type=q4_1")->config().num_layers, 2);
}

TEST(SyntheticTest, WeightsOfEveryTypeKeepActivationsInSize) {
  for (const char* type :
       {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"}) {
    const auto checkpoint = Open(std::string("synthetic:llama-3.2-1b,type=") + type);
    const auto tensor = checkpoint->Tensor("lm_head.weight", 64, 2048);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    double sum = 0, squares = 0;
    const std::vector<float> values = Values(*tensor);
    for (const float value : values) {
      sum += value;
      squares += double{value} * value;
    }
    const auto count = static_cast<double>(values.size());
    EXPECT_NEAR(std::sqrt(squares / count * 2048), 1.0, 0.6) << type;
    EXPECT_LT(std::abs(sum / count) * std::sqrt(2048), 0.2) << type;
  }
}

TEST(SyntheticTest, IsTheSameEveryTime) {
  const auto values = [](const std::string& tensor) {
    return Values(Open("synthetic:smollm2-135m,type=q4_1")->Tensor(tensor, 8, 576).value());
  };
  EXPECT_EQ(values("a"), values("a"));
  EXPECT_NE(values("a"), values("b"));
  const auto checkpoint = Open("synthetic:smollm2-135m,type=q4_1");
  ASSERT_TRUE(checkpoint->Tensor("larger", 20000, 576).ok());
  EXPECT_EQ(Values(checkpoint->Tensor("a", 8, 576).value()), values("a"));
}

TEST(SyntheticTest, TokensAreBytes) {
  const auto checkpoint = Open("synthetic:smollm2-135m");
  const auto tokenizer = Tokenizer::FromJson(checkpoint->tokenizer_json());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("a \n\xC3\xA9", {}).value(),
              ElementsAre('a', ' ', '\n', 0xC3, 0xA9));
}

TEST(SyntheticTest, ListsWhatThereIs) {
  EXPECT_THAT(ErrorOf("synthetic:gpt-9"),
              AllOf(HasSubstr("geometry \"gpt-9\""), HasSubstr("llama-3.1-8b, llama-3.2-1b")));
  EXPECT_THAT(ErrorOf("synthetic:smollm2-135m,type=q3"),
              AllOf(HasSubstr("type \"q3\""), HasSubstr("q4_1")));
  EXPECT_THAT(ErrorOf("synthetic:smollm2-135m,layers=0"), HasSubstr("layers is 0"));
  for (const char* option : {"layers=", "layers=2x", "layers", "depth=2", ""}) {
    EXPECT_THAT(ErrorOf(std::string("synthetic:smollm2-135m,") + option),
                HasSubstr("neither layers=NUMBER nor type=TYPE"))
        << option;
  }
  const auto checkpoint = Open("synthetic:smollm2-135m,type=q4_k");
  EXPECT_THAT(Message(checkpoint->Tensor("t", 2, 576).status()),
              HasSubstr("rows of 576 are no multiple of q4_k's block"));
}

}  // namespace
}  // namespace everlong
