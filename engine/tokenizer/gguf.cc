#include "engine/tokenizer/gguf.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "engine/json_object.h"
#include "engine/status.h"
#include "engine/text.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "fmt/format.h"

namespace everlong {
namespace {

using nlohmann::json;

constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTypes[] = "tokenizer.ggml.token_type";
constexpr char kScores[] = "tokenizer.ggml.scores";
constexpr char kMerges[] = "tokenizer.ggml.merges";

// Longer tokens are not made of others, so that a damaged file does not take forever; SentencePiece
// learns none of more than some tens of bytes.
constexpr size_t kMaxMergedBytes = 1024;

// What SentencePiece writes for a space.
constexpr std::string_view kSpace = "\u2581";

// The numbers that tokenizer.ggml.token_type holds.
constexpr double kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6;

// Added tokens that end a turn or a text, whatever else the file names.
constexpr std::string_view kEndTokens[] = {"<|eot_id|>",    "<|eom_id|>",           "<|im_end|>",
                                           "<|endoftext|>", "<|end_of_text|>",      "</s>",
                                           "<end_of_turn>", "<｜end▁of▁sentence｜>"};

// How the text is cut into words for each value of tokenizer.ggml.pre: by all matches of the first
// expression, what is left by those of the second and so on.
struct WordRule {
  std::vector<std::string_view> names;
  std::vector<std::string_view> expressions;
  bool ignore_merges = false;
  bool add_bos = false;
};

constexpr std::string_view kLlama3Words =
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Words =
    R"('(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<WordRule>& WordRules() {
  static const auto* const kRules = new std::vector<WordRule>{
      {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"}, {kByteLevelWords}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       {R"(\p{N})", kByteLevelWords}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"}, {kLlama3Words}, true, true},
      {{"smaug-bpe", "dbrx"}, {kLlama3Words}},
      {{"qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"}, {kQwen2Words}},
      {{"tekken"}, {kTekkenWords}, true, true},
      {{"default"}, {R"([\p{P}\$\+<=>\^~\|]+)", kByteLevelWords, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
  };
  return *kRules;
}

absl::StatusOr<WordRule> FindWordRule(const std::string& name) {
  std::vector<std::string_view> known;
  for (const WordRule& rule : WordRules()) {
    if (std::find(rule.names.begin(), rule.names.end(), name) != rule.names.end()) return rule;
    known.insert(known.end(), rule.names.begin(), rule.names.end());
  }
  return absl::InvalidArgumentError(
      fmt::format("metadata: tokenizer.ggml.pre is {}; supported are {}", DescribeJson(name),
                  fmt::join(known, ", ")));
}

// Appends `text`, valid UTF-8, as a JSON string.
void AppendQuoted(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (static_cast<uint8_t>(c) < 0x20) {
      *out += fmt::format("\\u{:04x}", c);
      continue;
    }
    if (c == '"' || c == '\\') out->push_back('\\');
    out->push_back(c);
  }
  out->push_back('"');
}

// The array `key` of strings, which must be valid UTF-8.
absl::StatusOr<std::vector<std::string_view>> Strings(const GgufFile& file, const char* key) {
  const auto array = file.arrays.find(key);
  auto strings = array == file.arrays.end() ? std::nullopt : array->second.Strings();
  if (!strings || strings->empty()) {
    return absl::InvalidArgumentError(fmt::format("metadata: {} must be an array of strings", key));
  }
  for (size_t i = 0; i < strings->size(); ++i) {
    if (FindInvalidUtf8((*strings)[i]) == std::string_view::npos) continue;
    return absl::InvalidArgumentError(
        fmt::format("metadata: {}: entry {} is not valid UTF-8", key, i));
  }
  return *std::move(strings);
}

// The array `key` of `size` numbers; where it is absent all are `fallback`.
absl::StatusOr<std::vector<double>> Numbers(const GgufFile& file, const char* key, size_t size,
                                            double fallback) {
  const auto array = file.arrays.find(key);
  if (array == file.arrays.end()) return std::vector<double>(size, fallback);
  auto numbers = array->second.Numbers();
  if (!numbers || numbers->size() != size) {
    return absl::InvalidArgumentError(
        fmt::format("metadata: {} must be an array of {} numbers, one for each token", key, size));
  }
  return *std::move(numbers);
}

// Writes the tokenizer.json: everything but vocabulary and merges as a document, those as text.
class Writer {
 public:
  explicit Writer(const GgufFile& file) : file_(file), metadata_(file.scalars, "metadata") {}

  absl::StatusOr<GgufTokenizer> Write();

 private:
  absl::Status ReadVocabulary();
  void ReadSpecialIds(bool is_sentence_piece);
  std::string UnknownCharacters() const;
  absl::Status DescribeByteLevel();
  absl::Status DescribeSentencePiece();
  absl::Status AppendScoredMerges();
  void AddTokens();
  void AddFrame(bool add_bos_by_default);
  std::string Text() const;

  void AppendMerge(std::string_view left, std::string_view right);
  std::optional<int32_t> Id(const char* name, std::optional<int32_t> fallback = {});
  bool IsSpecial(size_t id) const { return types_[id] == kControl || types_[id] == kUnknown; }
  bool IsAdded(size_t id) const { return IsSpecial(id) || types_[id] == kUserDefined; }

  const GgufFile& file_;
  JsonObject metadata_;
  std::vector<std::string_view> tokens_;
  std::vector<double> types_;
  std::optional<int32_t> unk_id_;
  GgufTokenizer result_;
  json document_ = json::object();
  json model_ = {{"type", "BPE"}};
  std::string merges_;  // the elements of the array
};

std::optional<int32_t> Writer::Id(const char* name, std::optional<int32_t> fallback) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  if (metadata_.Find(key) != nullptr) {
    return static_cast<int32_t>(metadata_.Int(key, {0, result_.vocab_size - 1}));
  }
  return fallback && *fallback < result_.vocab_size ? fallback : std::nullopt;
}

absl::Status Writer::ReadVocabulary() {
  ASSIGN_OR_RETURN(tokens_, Strings(file_, kTokens));
  result_.vocab_size = static_cast<int64_t>(tokens_.size());
  ASSIGN_OR_RETURN(types_, Numbers(file_, kTypes, tokens_.size(), kNormal));
  return absl::OkStatus();
}

void Writer::ReadSpecialIds(bool is_sentence_piece) {
  const auto by_default = [is_sentence_piece](int32_t id) {
    return is_sentence_piece ? std::optional<int32_t>(id) : std::nullopt;
  };
  unk_id_ = Id("unknown", by_default(0));
  if (const auto bos = Id("bos", by_default(1))) result_.bos_ids = {*bos};
  std::vector<int32_t>& ends = result_.eos_ids;
  const auto add_end = [&ends](int32_t id) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  };
  for (const auto& id : {Id("eos", by_default(2)), Id("eot"), Id("eom")}) {
    if (id) add_end(*id);
  }
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const bool is_end = std::find(std::begin(kEndTokens), std::end(kEndTokens), tokens_[id]) !=
                        std::end(kEndTokens);
    if (is_end && IsAdded(id)) add_end(static_cast<int32_t>(id));
  }
}

json SplitStep(std::string_view expression, std::string_view behavior) {
  return {{"type", "Split"}, {"pattern", {{"Regex", expression}}}, {"behavior", behavior}};
}

// A character class of the ASCII characters that no token stands for; empty where there is none.
std::string Writer::UnknownCharacters() const {
  std::array<bool, 256> known{};
  for (const std::string_view token : tokens_) {
    if (token.size() > 2) continue;
    const auto bytes = BytesFromAlphabet(token);
    if (bytes && bytes->size() == 1) known[static_cast<uint8_t>((*bytes)[0])] = true;
  }
  std::string characters;
  for (int c = 0; c < 128; ++c) {
    if (!known[c]) characters += fmt::format("\\x{{{:02x}}}", c);
  }
  return characters.empty() ? "" : fmt::format("[{}]", characters);
}

absl::Status Writer::DescribeByteLevel() {
  ASSIGN_OR_RETURN(const WordRule rule,
                   FindWordRule(metadata_.String("tokenizer.ggml.pre", "default")));
  json steps = json::array();
  for (const std::string_view expression : rule.expressions) {
    steps.push_back(SplitStep(expression, "Isolated"));
  }
  // As in llama.cpp, what they stand between does not meet.
  const std::string unknown = UnknownCharacters();
  if (!unknown.empty()) steps.push_back(SplitStep(unknown, "Removed"));
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  document_["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
  document_["decoder"] = {{"type", "ByteLevel"}};
  model_["ignore_merges"] = rule.ignore_merges;
  ASSIGN_OR_RETURN(const auto merges, Strings(file_, kMerges));
  for (const std::string_view merge : merges) {
    const size_t space = std::min(merge.find(' ', 1), merge.size());
    AppendMerge(merge.substr(0, space), merge.substr(std::min(space + 1, merge.size())));
  }
  AddFrame(rule.add_bos);
  return absl::OkStatus();
}

void Writer::AppendMerge(std::string_view left, std::string_view right) {
  merges_ += merges_.empty() ? "[" : ",[";
  AppendQuoted(left, &merges_);
  merges_.push_back(',');
  AppendQuoted(right, &merges_);
  merges_.push_back(']');
}

absl::Status Writer::DescribeSentencePiece() {
  const bool has_prefix = metadata_.Bool("tokenizer.ggml.add_space_prefix", true);
  json normalizers = json::array();
  if (has_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  document_["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}};
  json decoders = json::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (has_prefix) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  document_["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  model_["byte_fallback"] = true;
  model_["fuse_unk"] = true;
  if (unk_id_) model_["unk_token"] = tokens_[*unk_id_];
  RETURN_IF_ERROR(AppendScoredMerges());
  AddFrame(/*add_bos_by_default=*/true);
  return absl::OkStatus();
}

// SentencePiece joins the two neighbours that make the token of the highest score. Any two tokens
// that make a third are therefore a merge, and the third's score its rank.
absl::Status Writer::AppendScoredMerges() {
  ASSIGN_OR_RETURN(const auto scores, Numbers(file_, kScores, tokens_.size(), 0.0));
  const auto is_text = [this](size_t id) { return !IsSpecial(id) && types_[id] != kByte; };
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> ids;
  std::vector<int32_t> by_score;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (!is_text(id)) continue;
    ids.emplace(tokens_[id], static_cast<int32_t>(id));
    by_score.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  for (const int32_t id : by_score) {
    const std::string_view token = tokens_[id];
    size_t at = token.size() <= kMaxMergedBytes ? 0 : token.size();
    while (at < token.size()) {
      NextCodePoint(token, &at);
      const std::string_view left = token.substr(0, at), right = token.substr(at);
      if (ids.contains(left) && ids.contains(right)) AppendMerge(left, right);
    }
  }
  return absl::OkStatus();
}

void Writer::AddTokens() {
  json& added = document_["added_tokens"] = json::array();
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (!IsAdded(id)) continue;
    added.push_back(
        {{"id", id}, {"content", tokens_[id]}, {"normalized", false}, {"special", IsSpecial(id)}});
  }
}

// The tokens that the model wants before and behind a text.
void Writer::AddFrame(bool add_bos_by_default) {
  const auto ids_where = [this](const char* key, bool fallback, const std::vector<int32_t>& ids) {
    const bool wanted = metadata_.Bool(key, fallback) && !ids.empty();
    return wanted ? std::vector<int32_t>{ids[0]} : std::vector<int32_t>();
  };
  json pieces = json::array();
  json tokens = json::object();
  const auto add = [&](int32_t id) {
    pieces.push_back({{"SpecialToken", {{"id", tokens_[id]}, {"type_id", 0}}}});
    tokens[std::string(tokens_[id])] = {{"id", tokens_[id]}, {"ids", json::array({id})}};
  };
  for (const int32_t id :
       ids_where("tokenizer.ggml.add_bos_token", add_bos_by_default, result_.bos_ids)) {
    add(id);
  }
  pieces.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  for (const int32_t id : ids_where("tokenizer.ggml.add_eos_token", false, result_.eos_ids)) {
    add(id);
  }
  document_["post_processor"] = {
      {"type", "TemplateProcessing"}, {"single", pieces}, {"special_tokens", tokens}};
}

std::string Writer::Text() const {
  std::string text = document_.dump();
  text.back() = ',';
  text += "\"model\":" + model_.dump();
  text.back() = ',';
  text += "\"vocab\":{";
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (id > 0) text.push_back(',');
    AppendQuoted(tokens_[id], &text);
    text += fmt::format(":{}", id);
  }
  return text + "},\"merges\":[" + merges_ + "]}}";
}

absl::StatusOr<GgufTokenizer> Writer::Write() {
  RETURN_IF_ERROR(ReadVocabulary());
  const std::string model = metadata_.String("tokenizer.ggml.model");
  ReadSpecialIds(model == "llama");
  RETURN_IF_ERROR(metadata_.status());
  if (model == "gpt2") {
    RETURN_IF_ERROR(DescribeByteLevel());
  } else if (model == "llama") {
    RETURN_IF_ERROR(DescribeSentencePiece());
  } else {
    metadata_.Refuse("tokenizer.ggml.model", "supported are gpt2 and llama");
  }
  RETURN_IF_ERROR(metadata_.status());
  AddTokens();
  result_.json = Text();
  return std::move(result_);
}

}  // namespace

absl::StatusOr<GgufTokenizer> TokenizerFromGguf(const GgufFile& file) {
  return Writer(file).Write();
}

}  // namespace everlong
