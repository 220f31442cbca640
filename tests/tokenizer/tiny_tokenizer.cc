#include "tests/tokenizer/tiny_tokenizer.h"

#include <cstdio>

#include "engine/text.h"

namespace everlong {
namespace {

using nlohmann::json;

// The code point that stands for a byte in GPT-2's alphabet.
std::string Letter(int byte) {
  for (char32_t code_point = '!';; ++code_point) {
    std::string letter;
    AppendUtf8(code_point, &letter);
    if (BytesFromAlphabet(letter) == std::string(1, static_cast<char>(byte))) return letter;
  }
}

}  // namespace

json AddedTokenJson(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

json ByteLevelJson(const std::vector<std::pair<std::string, std::string>>& merges) {
  json vocab, merge_list = json::array();
  for (int byte = 0; byte < 256; ++byte) vocab[Letter(byte)] = byte;
  for (const auto& [left, right] : merges) {
    const int id = static_cast<int>(vocab.size());
    vocab.emplace(left + right, id);
    merge_list.push_back(left + " " + right);
  }
  const int end = static_cast<int>(vocab.size());
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens",
           {AddedTokenJson(end, "<|end|>", true), AddedTokenJson(end + 1, "<|user|>", true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
}

json SentencePieceJson() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    char token[8];
    std::snprintf(token, sizeof(token), "<0x%02X>", byte);
    vocab[token] = 3 + byte;
  }
  for (const char* piece : {"\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"}) {
    const int id = static_cast<int>(vocab.size());
    vocab[piece] = id;
  }
  const json space_to_mark = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  const json mark_to_space = {
      {"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}};
  const json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  return {{"version", "1.0"},
          {"added_tokens",
           {AddedTokenJson(0, "<unk>", true), AddedTokenJson(1, "<s>", true),
            AddedTokenJson(2, "</s>", true)}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers", {{{"type", "Prepend"}, {"prepend", "\u2581"}}, space_to_mark}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single", {bos, text}},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {mark_to_space,
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", {"a b", "\u2581 ab", "\u2581 a"}}}}};
}

std::unique_ptr<Tokenizer> MakeTokenizer(const json& json) {
  return Tokenizer::FromJson(json.dump()).value();
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text, bool add_special,
                            bool parse_special) {
  return tokenizer.Encode(text, {.add_special = add_special, .parse_special = parse_special})
      .value();
}

}  // namespace everlong
