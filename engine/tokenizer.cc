#include "engine/tokenizer.h"

#include <fmt/format.h>

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "engine/check.h"
#include "engine/status.h"
#include "engine/text.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/decoder.h"
#include "engine/tokenizer/json.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"

namespace everlong {
namespace {

using nlohmann::json;

struct Parts {
  AddedTokenFinder added;  // those to find in the user's text
  Normalizer normalizer;
  AddedTokenFinder normalized_added;  // those to find in what the normalizer makes of it
  PreTokenizer pre_tokenizer;
  std::unique_ptr<Bpe> bpe;
  SpecialFrame frame;
  absl::flat_hash_map<std::string, int32_t> added_ids;  // by content
  // By id:
  std::vector<bool> special;
  StringTable bytes;        // what Decode appends for a token
  StringTable first_bytes;  // and for the first one
};

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(Parts parts) : parts_(std::move(parts)) {}

  int64_t vocab_size() const override { return static_cast<int64_t>(parts_.special.size()); }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              EncodeOptions options) const override {
    const size_t invalid = FindInvalidUtf8(text);
    if (invalid != text.npos) {
      return absl::InvalidArgumentError(
          fmt::format("the text is not valid UTF-8 at byte {}", invalid));
    }
    const SpecialFrame frame = options.add_special ? parts_.frame : SpecialFrame();
    std::vector<int32_t> ids = frame.before;
    RETURN_IF_ERROR(AppendIds(text, options.parse_special, &ids));
    ids.insert(ids.end(), frame.after.begin(), frame.after.end());
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override {
    StreamDecoder decoder(this, skip_special);
    std::string text;
    for (const int32_t id : ids) text += decoder.Append(id);
    return text + decoder.Finish();
  }

  std::string TokenBytes(int32_t id) const override { return std::string(parts_.bytes[id]); }

  std::string FirstTokenBytes(int32_t id) const override {
    return std::string(parts_.first_bytes[id]);
  }

  bool IsSpecial(int32_t id) const override { return parts_.special[id]; }

  int32_t Find(std::string_view content) const override {
    if (FindInvalidUtf8(content) != content.npos) return -1;
    const auto added = parts_.added_ids.find(std::string(content));
    return added == parts_.added_ids.end() ? parts_.bpe->Find(content) : added->second;
  }

 private:
  absl::Status AppendIds(std::string_view text, bool parse_special,
                         std::vector<int32_t>* ids) const;

  Parts parts_;
};

absl::Status BpeTokenizer::AppendIds(std::string_view text, bool parse_special,
                                     std::vector<int32_t>* ids) const {
  Bpe::Scratch scratch;
  const auto append_word = [&](std::string_view word) { parts_.bpe->Encode(word, &scratch, ids); };
  return parts_.added.Split(
      text, parse_special, [&](std::string_view part, const AddedToken* token) -> absl::Status {
        if (token != nullptr) {
          ids->push_back(token->id);
          return absl::OkStatus();
        }
        const bool part_at_start = part.data() == text.data();
        std::string storage;
        if (!parts_.normalizer.empty()) {
          storage = part;
          RETURN_IF_ERROR(parts_.normalizer.Apply(&storage));
          part = storage;
        }
        return parts_.normalized_added.Split(
            part, parse_special, [&](std::string_view piece, const AddedToken* token) {
              const bool at_start = part_at_start && piece.data() == part.data();
              if (token == nullptr) return parts_.pre_tokenizer.Split(piece, at_start, append_word);
              ids->push_back(token->id);
              return absl::OkStatus();
            });
      });
}

absl::StatusOr<std::unique_ptr<Bpe>> BpeFromJson(TokenizerJson* document, bool byte_level) {
  const json& model = Member(document->rest, "model");
  ASSIGN_OR_RETURN(const std::string type, StringMember(model, "type", "BPE"));
  if (type != "BPE") return UnsupportedComponent("model", type);
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const std::string affix, StringMember(model, name, ""));
    if (!affix.empty()) return UnsupportedComponent(fmt::format("model.{}", name), affix);
  }
  const json& dropout = Member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) {
    return UnsupportedComponent("model.dropout", dropout.dump());
  }
  BpeOptions options;
  options.byte_level = byte_level;
  ASSIGN_OR_RETURN(options.byte_fallback, BoolMember(model, "byte_fallback", false));
  ASSIGN_OR_RETURN(options.fuse_unk, BoolMember(model, "fuse_unk", false));
  ASSIGN_OR_RETURN(options.ignore_merges, BoolMember(model, "ignore_merges", false));
  ASSIGN_OR_RETURN(options.unk_token, StringMember(model, "unk_token", ""));
  if (document->ids.empty()) return absl::InvalidArgumentError("model.vocab is missing or empty");
  return Bpe::Create(std::move(document->tokens), document->ids, document->merges, options);
}

// INVALID_ARGUMENT where the vocabulary has `token` with another id or another token with its id.
absl::Status CheckAgainstVocabulary(const AddedToken& token, const Bpe& bpe) {
  const int32_t known_id = bpe.Find(token.content);
  if (known_id == token.id) return absl::OkStatus();
  if (known_id >= 0) {
    return absl::InvalidArgumentError(fmt::format(
        "added token \"{}\" has id {}, in the vocabulary {}", token.content, token.id, known_id));
  }
  if (!bpe.Content(token.id).empty()) {
    return absl::InvalidArgumentError(
        fmt::format("added token \"{}\" has id {}, which the vocabulary gives to \"{}\"",
                    token.content, token.id, bpe.Content(token.id)));
  }
  return absl::OkStatus();
}

// The added token of each id, null where the vocabulary alone has it.
absl::StatusOr<std::vector<const AddedToken*>> ListById(const std::vector<AddedToken>& added,
                                                        const Bpe& bpe) {
  std::vector<const AddedToken*> by_id(bpe.vocab_size(), nullptr);
  for (const AddedToken& token : added) {
    RETURN_IF_ERROR(CheckAgainstVocabulary(token, bpe));
    const auto id = static_cast<size_t>(token.id);
    if (id >= by_id.size()) by_id.resize(id + 1, nullptr);
    if (by_id[id] != nullptr) {
      return absl::InvalidArgumentError(fmt::format(
          "added tokens \"{}\" and \"{}\" both have id {}", by_id[id]->content, token.content, id));
    }
    by_id[id] = &token;
  }
  return by_id;
}

// Fills the tables by id and by content and the finders.
absl::Status FillTables(const std::vector<AddedToken>& added, const TokenDecoder& decoder,
                        Parts* parts) {
  ASSIGN_OR_RETURN(const auto by_id, ListById(added, *parts->bpe));
  for (size_t id = 0; id < by_id.size(); ++id) {
    const bool is_added = by_id[id] != nullptr;
    std::string content(is_added ? by_id[id]->text : parts->bpe->Content(id));
    ASSIGN_OR_RETURN(const std::string bytes, decoder.Decode(content, false));
    ASSIGN_OR_RETURN(const std::string first_bytes, decoder.Decode(content, true));
    parts->bytes.Append(content.empty() ? "" : bytes);
    parts->first_bytes.Append(content.empty() ? "" : first_bytes);
    parts->special.push_back(is_added && by_id[id]->special);
  }
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : added) {
    if (!parts->added_ids.emplace(token.content, token.id).second) {
      return absl::InvalidArgumentError(
          fmt::format("added token \"{}\" appears twice", token.content));
    }
    if (token.special) parts->bpe->Hide(token.id);
    (token.normalized ? normalized : raw).push_back(token);
  }
  parts->added = AddedTokenFinder(std::move(raw));
  parts->normalized_added = AddedTokenFinder(std::move(normalized));
  return absl::OkStatus();
}

absl::StatusOr<Parts> PartsFromJson(TokenizerJson document) {
  const json& rest = document.rest;
  Parts parts;
  ASSIGN_OR_RETURN(parts.normalizer, Normalizer::FromJson(rest));
  ASSIGN_OR_RETURN(parts.pre_tokenizer, PreTokenizer::FromJson(rest));
  ASSIGN_OR_RETURN(const TokenDecoder decoder, TokenDecoder::FromJson(rest));
  ASSIGN_OR_RETURN(const std::vector<AddedToken> added,
                   AddedTokensFromJson(rest, parts.normalizer));
  ASSIGN_OR_RETURN(parts.bpe, BpeFromJson(&document, parts.pre_tokenizer.byte_level()));
  RETURN_IF_ERROR(FillTables(added, decoder, &parts));
  ASSIGN_OR_RETURN(parts.frame,
                   SpecialFrameFromJson(rest, static_cast<int64_t>(parts.special.size())));
  return parts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json) {
  ASSIGN_OR_RETURN(TokenizerJson document, ParseTokenizerJson(json));
  ASSIGN_OR_RETURN(Parts parts, PartsFromJson(std::move(document)));
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

StreamDecoder::StreamDecoder(const Tokenizer* tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::Append(int32_t id) {
  EVERLONG_CHECK(id >= 0 && id < tokenizer_->vocab_size());
  if (skip_special_ && tokenizer_->IsSpecial(id)) return {};
  const std::string bytes = tokenizer_->TokenBytes(id);
  pending_ += started_ ? bytes : tokenizer_->FirstTokenBytes(id);
  started_ |= !bytes.empty();
  std::string rest = pending_.substr(pending_.size() - IncompleteUtf8Suffix(pending_));
  pending_.resize(pending_.size() - rest.size());
  return ReplaceInvalidUtf8(std::exchange(pending_, std::move(rest)));
}

std::string StreamDecoder::Finish() {
  return ReplaceInvalidUtf8(std::exchange(pending_, {}));
}

}  // namespace everlong
