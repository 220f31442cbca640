#include "engine/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <thread>

#include "engine/text.h"
#include "tests/tokenizer/tiny_tokenizer.h"

namespace everlong {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kSentencePieceA = 260;  // "a" of SentencePieceJson, followed by its other pieces

std::string NeedleJson() {
  std::ifstream file(EVERLONG_SOURCE_DIR "/models/needle-7m/tokenizer.json", std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(Tokenizer, EncodesByteLevelWords) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({{"h", "e"}, {"t", "he"}, {"\u0120", "the"}}));
  EXPECT_THAT(Encode(*tokenizer, "the the"), ElementsAre(257, 258));
  EXPECT_THAT(Encode(*tokenizer, "\u00E9"), ElementsAre(0xC3, 0xA9));
  EXPECT_THAT(Encode(*tokenizer, ""), ElementsAre());
  EXPECT_EQ(tokenizer->vocab_size(), 261);
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{257, 258, 0xE2}, false), "the the\uFFFD");
}

TEST(Tokenizer, EncodesSentencePieces) {
  const auto tokenizer = MakeTokenizer(SentencePieceJson());
  EXPECT_THAT(Encode(*tokenizer, "ab a", true),
              ElementsAre(1, kSentencePieceA + 4, kSentencePieceA + 2));
  EXPECT_THAT(Encode(*tokenizer, "\n"), ElementsAre(kSentencePieceA - 1, 3 + '\n'));
  for (const std::string text : {"ab a", " ab", "  ", "a\u00E9\U0001F600 b", "\n", ""}) {
    EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text, true), true), text);
  }
}

TEST(Tokenizer, SpecialTokensInTextAreTextUnlessParsed) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}));
  EXPECT_THAT(Encode(*tokenizer, "a<|end|><|user|>", false, true), ElementsAre('a', 256, 257));
  const std::string look_alike = "<|end|>";
  EXPECT_EQ(Encode(*tokenizer, look_alike),
            std::vector<int32_t>(look_alike.begin(), look_alike.end()));
  EXPECT_TRUE(tokenizer->IsSpecial(256));
  EXPECT_FALSE(tokenizer->IsSpecial('a'));
  const std::vector<int32_t> ids = {'a', 256, 'b'};
  EXPECT_EQ(tokenizer->Decode(ids, false), "a<|end|>b");
  EXPECT_EQ(tokenizer->Decode(ids, true), "ab");
  EXPECT_EQ(tokenizer->Find("<|user|>"), 257);
  EXPECT_EQ(tokenizer->Find("<|none|>"), -1);
  EXPECT_EQ(tokenizer->Find("a\xFF"), -1);
}

// Where whole words are looked up first, one that equals a special token is none.
TEST(Tokenizer, IgnoredMergesDoNotMakeSpecialTokensOfText) {
  json file = ByteLevelJson({{"e", "n"}, {"en", "d"}});
  file["model"]["ignore_merges"] = true;
  file["added_tokens"] = json::array({AddedTokenJson(257, "end", true)});
  const auto tokenizer = MakeTokenizer(file);
  EXPECT_THAT(Encode(*tokenizer, "en"), ElementsAre(256));
  EXPECT_THAT(Encode(*tokenizer, "end", false, true), ElementsAre(257));
  file["model"]["merges"] = json::array();
  EXPECT_THAT(Encode(*MakeTokenizer(file), "end"), ElementsAre('e', 'n', 'd'));
}

TEST(Tokenizer, OfAddedTokensTheFirstAndThenTheLongestCounts) {
  json file = ByteLevelJson({});
  file["added_tokens"] = {AddedTokenJson(256, "<a", false), AddedTokenJson(257, "<a><b>", false),
                          AddedTokenJson(258, "a>", false), AddedTokenJson(300, "<a><b", true)};
  const auto tokenizer = MakeTokenizer(file);
  EXPECT_THAT(Encode(*tokenizer, "<a><b>a>"), ElementsAre(257, 258));
  EXPECT_THAT(Encode(*tokenizer, "<a>"), ElementsAre(256, '>'));
  // As text, the special token hides what is in its midst.
  EXPECT_THAT(Encode(*tokenizer, "<a><b"), ElementsAre('<', 'a', '>', '<', 'b'));
  EXPECT_THAT(Encode(*tokenizer, "<a><b", false, true), ElementsAre(300));
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->TokenBytes(299), "");
}

TEST(Tokenizer, AddedTokensTakeWhiteSpaceAlong) {
  json file = ByteLevelJson({});
  file["added_tokens"] = {AddedTokenJson(256, "<l>", false), AddedTokenJson(257, "<r>", false),
                          AddedTokenJson(258, "<w>", false)};
  file["added_tokens"][0]["lstrip"] = true;
  file["added_tokens"][1]["rstrip"] = true;
  file["added_tokens"][2]["single_word"] = true;
  const auto tokenizer = MakeTokenizer(file);
  EXPECT_THAT(Encode(*tokenizer, "a \u3000\n<l> b"), ElementsAre('a', 256, ' ', 'b'));
  EXPECT_THAT(Encode(*tokenizer, "a <r> \u3000\nb"), ElementsAre('a', ' ', 257, 'b'));
  EXPECT_THAT(Encode(*tokenizer, "<r>  <l>"), ElementsAre(257, 256));
  EXPECT_THAT(Encode(*tokenizer, "<w>!<w>"), ElementsAre(258, '!', 258));
  EXPECT_THAT(Encode(*tokenizer, "a<w>"), ElementsAre('a', '<', 'w', '>'));
  EXPECT_THAT(Encode(*tokenizer, "<w>\u00E9"), ElementsAre('<', 'w', '>', 0xC3, 0xA9));
}

TEST(Tokenizer, NormalizedTokensAreFoundInNormalizedText) {
  json file = ByteLevelJson({});
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"] = {AddedTokenJson(256, "Day", false), AddedTokenJson(257, "Night", false)};
  file["added_tokens"][0]["normalized"] = true;
  const auto tokenizer = MakeTokenizer(file);
  EXPECT_THAT(Encode(*tokenizer, "DAY"), ElementsAre(256));
  EXPECT_THAT(Encode(*tokenizer, "Night"), ElementsAre(257));
  EXPECT_THAT(Encode(*tokenizer, "NIGHT"), ElementsAre('n', 'i', 'g', 'h', 't'));
}

TEST(Tokenizer, MetaspacePutsItsSpaceAtTheStartOnly) {
  json file = SentencePieceJson();
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}};
  const auto tokenizer = MakeTokenizer(file);
  constexpr int kMarkedA = kSentencePieceA + 2;
  EXPECT_THAT(Encode(*tokenizer, "a</s>a", false, true), ElementsAre(kMarkedA, 2, kSentencePieceA));
  EXPECT_THAT(Encode(*tokenizer, "</s>a", false, true), ElementsAre(2, kSentencePieceA));
  file["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_THAT(Encode(*MakeTokenizer(file), "a</s>a", false, true),
              ElementsAre(kMarkedA, 2, kMarkedA));
  file["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_THAT(Encode(*MakeTokenizer(file), "a a"), ElementsAre(kSentencePieceA, kMarkedA));
}

TEST(Tokenizer, PostProcessorsWrapOneAnother) {
  json file = ByteLevelJson({});
  const auto wrap = [](int before, int after) {
    const auto token = [](int id) { return json{{"SpecialToken", {{"id", std::to_string(id)}}}}; };
    const auto ids = [](int id) { return json{{"ids", {id}}}; };
    return json{{"type", "TemplateProcessing"},
                {"single", {token(before), {{"Sequence", {{"id", "A"}}}}, token(after)}},
                {"special_tokens",
                 {{std::to_string(before), ids(before)}, {std::to_string(after), ids(after)}}}};
  };
  file["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, wrap(1, 2), wrap(3, 4)}}};
  const auto tokenizer = MakeTokenizer(file);
  EXPECT_THAT(Encode(*tokenizer, "x", true), ElementsAre(3, 1, 'x', 2, 4));
  EXPECT_THAT(Encode(*tokenizer, "x", false), ElementsAre('x'));
}

TEST(Tokenizer, InvalidUtf8IsRefusedWithItsOffset) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}));
  const auto ids = tokenizer->Encode("caf\xC3\xA9 \xE2\x82", {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 6"));
}

TEST(Tokenizer, TextThatTakesTooLongIsRefused) {
  json file = ByteLevelJson({});
  file["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(?:a+)+[bc]"}}}, {"behavior", "Isolated"}};
  const auto ids = MakeTokenizer(file)->Encode(std::string(100'000, 'a'), {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
}

// What Decode should be: the first token of the text is the first that adds anything.
std::string DecodeByDefinition(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                               bool skip_special) {
  std::string bytes;
  bool started = false;
  for (const int32_t id : ids) {
    if (skip_special && tokenizer.IsSpecial(id)) continue;
    bytes += started ? tokenizer.TokenBytes(id) : tokenizer.FirstTokenBytes(id);
    started = started || !tokenizer.TokenBytes(id).empty();
  }
  return ReplaceInvalidUtf8(bytes);
}

TEST(StreamDecoder, RandomIdsNeverSplitUtf8AndAddUpToDecode) {
  std::mt19937 random(1);
  const std::unique_ptr<Tokenizer> tokenizers[] = {
      MakeTokenizer(SentencePieceJson()), MakeTokenizer(ByteLevelJson({{"\u00E2", "\u0124"}})),
      Tokenizer::FromJson(NeedleJson()).value()};
  for (const auto& tokenizer : tokenizers) {
    for (int round = 0; round < 3000; ++round) {
      std::vector<int32_t> ids;
      for (uint32_t i = 0; i < random() % 30; ++i)
        ids.push_back(random() % tokenizer->vocab_size());
      const bool skip_special = round % 2 == 0;
      StreamDecoder decoder(tokenizer.get(), skip_special);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = decoder.Append(id);
        ASSERT_EQ(FindInvalidUtf8(piece), std::string::npos);
        text += piece;
      }
      text += decoder.Finish();
      ASSERT_EQ(text, tokenizer->Decode(ids, skip_special));
      ASSERT_EQ(text, DecodeByDefinition(*tokenizer, ids, skip_special));
    }
  }
}

TEST(StreamDecoder, HoldsACharacterUntilItIsWhole) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}));
  StreamDecoder decoder(tokenizer.get(), true);
  EXPECT_EQ(decoder.Append('a'), "a");
  EXPECT_EQ(decoder.Append(0xF0), "");
  EXPECT_EQ(decoder.Append(0x9F), "");
  EXPECT_EQ(decoder.Append(256), "");  // special
  EXPECT_EQ(decoder.Append(0x98), "");
  EXPECT_EQ(decoder.Append(0x80), "\U0001F600");
  EXPECT_EQ(decoder.Append(0xE2), "");
  EXPECT_EQ(decoder.Append('b'), "\uFFFDb");
  EXPECT_EQ(decoder.Append(0xE2), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, DropsTheSpaceBeforeTheFirstTokenOnly) {
  const auto tokenizer = MakeTokenizer(SentencePieceJson());
  constexpr int kMarkedA = kSentencePieceA + 2;
  StreamDecoder decoder(tokenizer.get(), true);
  EXPECT_EQ(decoder.Append(1), "");
  EXPECT_EQ(decoder.Append(kMarkedA), "a");
  EXPECT_EQ(decoder.Append(kMarkedA), " a");
}

// Runs as long as a user likes, in every way of cutting text that a model is known to use.
TEST(Tokenizer, LongRunsAreEncoded) {
  const char* const words[] = {
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
  std::vector<json> files = {ByteLevelJson({{"a", "a"}, {"\u0120", "\u0120"}}),
                             SentencePieceJson()};
  for (const char* expression : words) {
    files.push_back(ByteLevelJson({{"a", "a"}, {"aa", "aa"}, {"\u0120", "\u0120"}}));
    files.back()["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", expression}}}, {"behavior", "Isolated"}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    files.back()["normalizer"] = {{"type", "NFC"}};
  }
  for (const json& file : files) {
    const auto tokenizer = MakeTokenizer(file);
    for (const std::string unit :
         {"a", "A", " ", "\n", "\t ", "1", "!", "<|end|", "\u0301", "\u6F22", " \n"}) {
      std::string text;
      while (text.size() < 300'000) text += unit;
      EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text, true), true), text);
    }
  }
}

TEST(Tokenizer, ThreadsEncodeAlike) {
  const auto tokenizer = Tokenizer::FromJson(NeedleJson()).value();
  const std::string text = NeedleJson().substr(0, 50'000);
  const std::vector<int32_t> expected = Encode(*Tokenizer::FromJson(NeedleJson()).value(), text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { EXPECT_EQ(Encode(*tokenizer, text), expected); });
  }
  for (std::thread& thread : threads) thread.join();
}

struct Damage {
  const char* name;
  std::function<void(json*)> apply;
  const char* message;
};

TEST(Tokenizer, UnsupportedOrDamagedFilesAreNamed) {
  const auto set = [](const char* pointer, json value) {
    return [=](json* file) { (*file)[json::json_pointer(pointer)] = value; };
  };
  const Damage damages[] = {
      {"unigram", set("/model/type", "Unigram"), "model \"Unigram\" is not supported"},
      {"no vocabulary", set("/model/vocab", json::object()), "model.vocab is missing or empty"},
      {"model", set("/model", 3), "model.vocab is missing or empty"},
      {"dropout", set("/model/dropout", 0.1), "model.dropout \"0.1\" is not supported"},
      {"suffix", set("/model/end_of_word_suffix", "</w>"), "model.end_of_word_suffix \"</w>\""},
      {"prefix", set("/model/continuing_subword_prefix", "##"), "model.continuing_subword_prefix"},
      {"option", set("/model/byte_fallback", "yes"),
       "BPE.byte_fallback is string, should be a boolean"},
      {"merge", set("/model/merges/0", "q z"), "needs token \"qz\""},
      {"merge type", set("/model/merges/0", 7), "model.merges: entry 0"},
      {"merge parts", set("/model/merges/0", json{"q", "z", "x"}), "model.merges: entry 0"},
      {"id type", set("/model/vocab/x", "1"), "model.vocab: token \"x\""},
      {"negative id", set("/model/vocab/x", -1), "model.vocab: token \"x\" has id -1"},
      {"huge id", set("/model/vocab/x", 1'000'000'000'000), "outside [0, 4194304)"},
      {"same id", set("/model/vocab/x", 65), "both have id 65"},
      {"normalizer", set("/normalizer", json{{"type", "Precompiled"}}),
       "normalizer \"Precompiled\" is not supported"},
      {"nested normalizer",
       set("/normalizer",
           json{{"type", "Sequence"}, {"normalizers", {{{"type", "StripAccents"}}}}}),
       "normalizer \"StripAccents\" is not supported"},
      {"no list", set("/normalizer", json{{"type", "Sequence"}}),
       "Sequence.normalizers is missing"},
      {"no type", set("/normalizer", json{{"kind", "NFC"}}),
       "normalizer is object, should be an object with a type"},
      {"no component", set("/decoder", "ByteLevel"), "decoder is string"},
      {"prepend", set("/normalizer", json{{"type", "Prepend"}, {"prepend", 1}}),
       "Prepend.prepend is number, should be a string"},
      {"pre_tokenizer", set("/pre_tokenizer/type", "BertPreTokenizer"),
       "pre_tokenizer \"BertPreTokenizer\""},
      {"order of pre_tokenizers",
       set("/pre_tokenizer",
           json{{"type", "Sequence"},
                {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}}),
       "pre_tokenizer behind ByteLevel \"Digits\""},
      {"behavior",
       set("/pre_tokenizer",
           json{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Shredded"}}),
       "pre_tokenizer behavior \"Shredded\""},
      {"expression",
       set("/pre_tokenizer",
           json{{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}),
       "regular expression \"(a\""},
      {"prepend_scheme",
       set("/pre_tokenizer",
           json{{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}),
       "prepend_scheme \"last\""},
      {"decoder", set("/decoder/type", "WordPiece"), "decoder \"WordPiece\" is not supported"},
      {"order of decoders",
       set("/decoder", json{{"type", "Sequence"},
                            {"decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}}}}),
       "decoder at this place \"ByteFallback\""},
      {"strip",
       set("/decoder",
           json{{"type", "Sequence"},
                {"decoders",
                 {{{"type", "Fuse"}}, {{"type", "Strip"}, {"content", " "}, {"start", 2}}}}}),
       "Strip \"start 2, stop 0\""},
      {"post_processor", set("/post_processor", json{{"type", "BertProcessing"}}),
       "post_processor \"BertProcessing\""},
      {"template",
       set("/post_processor", json{{"type", "TemplateProcessing"}, {"single", json::array()}}),
       "has 0 sequences, should be 1"},
      {"template piece",
       set("/post_processor", json{{"type", "TemplateProcessing"}, {"single", {7}}}),
       "component.id is missing"},
      {"template token",
       set("/post_processor",
           json{{"type", "TemplateProcessing"}, {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}}}),
       "special_tokens lacks \"<s>\""},
      {"template id",
       set("/post_processor", json{{"type", "TemplateProcessing"},
                                   {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}},
                                   {"special_tokens", {{"<s>", {{"ids", {999}}}}}}}),
       "has id 999, should be in [0, 259)"},
      {"added id", set("/added_tokens/0/id", -5), "added_tokens[0]: \"<|end|>\" has id -5"},
      {"added content", set("/added_tokens/1/content", ""),
       "added_tokens[1]: the content is empty"},
      {"added type", set("/added_tokens", "none"),
       "component.added_tokens is string, should be an array"},
      {"added twice", set("/added_tokens/1/content", "<|end|>"),
       "added token \"<|end|>\" appears twice"},
      {"added ids collide", set("/added_tokens/1/id", 257),
       "\"<|end|>\" and \"<|user|>\" both have id 257"},
      {"added id of another", set("/added_tokens/1/id", 65), "which the vocabulary gives to \"A\""},
      {"added with other id", set("/added_tokens/1/content", "A"),
       "has id 258, in the vocabulary 65"},
  };
  for (const Damage& damage : damages) {
    json file = ByteLevelJson({{"a", "b"}});
    damage.apply(&file);
    const auto tokenizer = Tokenizer::FromJson(file.dump());
    ASSERT_FALSE(tokenizer.ok()) << damage.name;
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(damage.message))
        << damage.name;
  }
}

TEST(Tokenizer, TruncatedFilesAreRefused) {
  const std::string whole = SentencePieceJson().dump();
  ASSERT_TRUE(Tokenizer::FromJson(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_FALSE(Tokenizer::FromJson(whole.substr(0, size)).ok()) << size;
  }
  for (const std::string other :
       {"[]", "3", "\"BPE\"", "null", "{}", "{\"model\": {\"vocab\": {\"\xFF\": 1}}}"}) {
    EXPECT_FALSE(Tokenizer::FromJson(other).ok()) << other;
  }
  EXPECT_FALSE(Tokenizer::FromJson(std::string(1'000'000, '[')).ok());
}

}  // namespace
}  // namespace everlong
