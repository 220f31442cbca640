#include <memory>
#include <string>

#include "engine/status.h"
#include "engine/tokenizer.h"
#include "engine/tokenizer/gguf.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/checkpoint/gguf_files.h"

namespace everlong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6;

struct Token {
  std::string text;
  int32_t type = kNormal;
  float score = 0.0f;
};

void SetTokens(const std::vector<Token>& tokens, GgufBuilder& file) {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  std::vector<float> scores;
  for (const Token& token : tokens) {
    texts.push_back(token.text);
    types.push_back(token.type);
    scores.push_back(token.score);
  }
  file.Set("tokenizer.ggml.tokens", texts);
  file.Set("tokenizer.ggml.token_type", types);
  file.Set("tokenizer.ggml.scores", scores);
}

// Bytes a to d, digits 1 and 2, a space and a full stop, with some merges.
GgufBuilder ByteLevelFile() {
  GgufBuilder file;
  file.Set("tokenizer.ggml.model", "gpt2");
  file.Set("tokenizer.ggml.pre", "smollm");
  SetTokens({{"<|im_end|>", kControl},
             {"a"},
             {"b"},
             {"c"},
             {"ab"},
             {"Ġ"},
             {"Ġab"},
             {"1"},
             {"2"},
             {"12"},
             {"."},
             {"a."},
             {"<think>", kUserDefined}},
            file);
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"a b", "Ġ ab", "1 2", "a ."});
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{0});
  return file;
}

// As Llama 2's vocabulary begins, with bytes of "a" and of a line feed.
GgufBuilder SentencePieceFile() {
  GgufBuilder file;
  file.Set("tokenizer.ggml.model", "llama");
  SetTokens({{"<unk>", kUnknown},
             {"<s>", kControl},
             {"</s>", kControl},
             {"<0x0A>", kByte},
             {"<", kNormal, -9},
             {"s>", kNormal, -8},
             {"a", kNormal, -7},
             {"b", kNormal, -7},
             {"▁", kNormal, -7},
             {"ab", kNormal, -3},
             {"ba", kNormal, -2},
             {"▁a", kNormal, -4},
             {"▁ab", kNormal, -5},
             {"s", kNormal, -9},
             {">", kNormal, -9},
             {"/", kNormal, -9}},
            file);
  return file;
}

absl::StatusOr<GgufTokenizer> Make(const std::string& bytes) {
  const auto file = ParseGguf(bytes);
  EXPECT_TRUE(file.ok()) << file.status();
  return TokenizerFromGguf(*file);
}

std::unique_ptr<Tokenizer> Open(const GgufBuilder& file) {
  const auto made = Make(file.Bytes());
  EXPECT_TRUE(made.ok()) << made.status();
  auto tokenizer = Tokenizer::FromJson(made->json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::string ErrorOf(const GgufBuilder& file) {
  const auto made = Make(file.Bytes());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument) << made.status();
  return std::string(Message(made.status()));
}

std::vector<int32_t> Ids(const GgufBuilder& file, std::string_view text,
                         Tokenizer::EncodeOptions options = {}) {
  const auto ids = Open(file)->Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

TEST(GgufTokenizerTest, CutsWordsAsTheFileSays) {
  GgufBuilder file = ByteLevelFile();
  EXPECT_THAT(Ids(file, "ab ab12"), ElementsAre(4, 6, 7, 8));
  file.Set("tokenizer.ggml.pre", "gpt-2");
  EXPECT_THAT(Ids(file, "ab ab12"), ElementsAre(4, 6, 9));
  file.Set("tokenizer.ggml.pre", "llama-bpe");
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  EXPECT_THAT(Ids(file, "ab ab12"), ElementsAre(4, 6, 9));  // words that are tokens need no merges
  file.Unset("tokenizer.ggml.pre");
  EXPECT_THAT(Ids(file, "ab ab12"), ElementsAre(4, 5, 4, 7, 8));
}

TEST(GgufTokenizerTest, KeepsNeighboursOfAnUnknownCharacterApart) {
  GgufBuilder file = ByteLevelFile();
  SetTokens({{"!"}, {"?"}, {"!?"}}, file);
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"! ?"});
  EXPECT_THAT(Ids(file, "!?!\x01?"), ElementsAre(2, 0, 1));
}

TEST(GgufTokenizerTest, TellsTokensApartByTheirTypes) {
  const GgufBuilder file = ByteLevelFile();
  EXPECT_THAT(Ids(file, "a<think>", {.parse_special = false}), ElementsAre(1, 12));
  EXPECT_THAT(Ids(file, "a<|im_end|>", {.parse_special = true}), ElementsAre(1, 0));
  EXPECT_THAT(Ids(file, "a<|im_end|>", {.parse_special = false}), ElementsAre(1));
  const auto tokenizer = Open(file);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_FALSE(tokenizer->IsSpecial(12));
  EXPECT_EQ(tokenizer->vocab_size(), 13);
  EXPECT_EQ(tokenizer->TokenBytes(6), " ab");
}

TEST(GgufTokenizerTest, FramesATextAsTheFileSays) {
  GgufBuilder file = ByteLevelFile();
  file.Set("tokenizer.ggml.bos_token_id", uint32_t{12});
  EXPECT_THAT(Ids(file, "a"), ElementsAre(1));
  file.Set("tokenizer.ggml.add_bos_token", true);
  file.Set("tokenizer.ggml.add_eos_token", true);
  EXPECT_THAT(Ids(file, "a"), ElementsAre(12, 1, 0));
  EXPECT_THAT(Ids(file, "a", {.add_special = false}), ElementsAre(1));
  file.Set("tokenizer.ggml.pre", "llama-bpe");
  file.Unset("tokenizer.ggml.add_bos_token");
  EXPECT_THAT(Ids(file, "a"), ElementsAre(12, 1, 0));
  EXPECT_THAT(Ids(SentencePieceFile(), "a"), ElementsAre(1, 11));
}

TEST(GgufTokenizerTest, ListsTheTokensThatEndAGeneration) {
  GgufBuilder file = ByteLevelFile();
  SetTokens({{"a"}, {"<|eot_id|>", kControl}, {"</s>"}, {"<|x|>", kControl}, {"b"}, {"ab"}}, file);
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{3});
  file.Set("tokenizer.ggml.eom_token_id", uint32_t{5});
  // Not the text "</s>", a token like any other here.
  EXPECT_THAT(Make(file.Bytes())->eos_ids, ElementsAre(3, 5, 1));
  EXPECT_THAT(Make(file.Bytes())->bos_ids, IsEmpty());
  EXPECT_THAT(Make(SentencePieceFile().Bytes())->eos_ids, ElementsAre(2));
  EXPECT_THAT(Make(SentencePieceFile().Bytes())->bos_ids, ElementsAre(1));
}

TEST(GgufTokenizerTest, MergesPiecesByTheirScores) {
  const GgufBuilder file = SentencePieceFile();
  const Tokenizer::EncodeOptions plain = {.add_special = false};
  EXPECT_THAT(Ids(file, "ab", plain), ElementsAre(12));
  EXPECT_THAT(Ids(file, "aba", plain), ElementsAre(11, 10));  // "ba" comes before "ab"
  EXPECT_THAT(Ids(file, "b\na", plain), ElementsAre(8, 7, 3, 6));
  EXPECT_THAT(Ids(file, "</s>", plain), ElementsAre(8, 4, 15, 5));  // not the token of that name
  EXPECT_EQ(Open(file)->Decode(Ids(file, "ab a", plain), false), "ab a");
}

TEST(GgufTokenizerTest, PutsNoSpaceInFrontWhereTheFileSaysSo) {
  GgufBuilder file = SentencePieceFile();
  file.Set("tokenizer.ggml.add_space_prefix", false);
  const std::vector<int32_t> ids = Ids(file, "ab a", {.add_special = false});
  EXPECT_THAT(ids, ElementsAre(9, 11));
  EXPECT_EQ(Open(file)->Decode(ids, false), "ab a");
}

TEST(GgufTokenizerTest, NeedsNoTokensWhereLlama2HasItsOwn) {
  GgufBuilder file = SentencePieceFile();
  SetTokens({{"a", kNormal}}, file);
  EXPECT_THAT(Ids(file, "a"),
              ElementsAre(0, 0));  // the only token stands for the unknown space too
}

TEST(GgufTokenizerTest, NamesTheKeyThatIsWrong) {
  GgufBuilder file = ByteLevelFile();
  file.Set("tokenizer.ggml.pre", "kimi-k2");
  EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr("tokenizer.ggml.pre is \"kimi-k2\""),
                                   HasSubstr("smollm"), HasSubstr("qwen2")));
  file = ByteLevelFile();
  file.Set("tokenizer.ggml.model", "bert");
  EXPECT_THAT(ErrorOf(file), HasSubstr("tokenizer.ggml.model is \"bert\""));
  file.Unset("tokenizer.ggml.model");
  EXPECT_THAT(ErrorOf(file), HasSubstr("tokenizer.ggml.model is missing"));
  file = ByteLevelFile();
  file.Set("tokenizer.ggml.eos_token_id", uint32_t{13});
  EXPECT_THAT(ErrorOf(file), HasSubstr("tokenizer.ggml.eos_token_id is 13"));
  file = ByteLevelFile();
  file.Set("tokenizer.ggml.add_bos_token", "yes");
  EXPECT_THAT(ErrorOf(file), HasSubstr("tokenizer.ggml.add_bos_token is \"yes\""));
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}) {
    file = ByteLevelFile();
    file.Unset(key);
    EXPECT_THAT(ErrorOf(file), HasSubstr(key));
    file.Set(key, std::vector<int32_t>{1});
    EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr(key), HasSubstr("array of strings")));
    file.Set(key, std::vector<std::string>{"a", "\xC3"});
    EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr(key), HasSubstr("entry 1 is not valid UTF-8")));
  }
  file = ByteLevelFile();
  file.Set("tokenizer.ggml.token_type", std::vector<int32_t>{1, 2});
  EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr("token_type"), HasSubstr("array of 13 numbers")));
  file = SentencePieceFile();
  file.Set("tokenizer.ggml.scores", std::vector<float>{1});
  EXPECT_THAT(ErrorOf(file), AllOf(HasSubstr("scores"), HasSubstr("array of 16 numbers")));
}

TEST(GgufTokenizerTest, WritesAnyTextAsJson) {
  GgufBuilder file = ByteLevelFile();
  const std::string awkward = "\"\\\n\x01\x7F/\xE2\x80\xA8";
  SetTokens({{awkward, kControl}, {"a"}, {"b"}, {"ab"}}, file);
  file.Set("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  EXPECT_EQ(Open(file)->Find(awkward), 0);
}

}  // namespace
}  // namespace everlong
