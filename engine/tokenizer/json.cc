#include "engine/tokenizer/json.h"

#include <fmt/format.h>

#include <utility>

#include "engine/status.h"

namespace everlong {
namespace {

using nlohmann::json;

// Deeper than any tokenizer.json; destroying a deep document takes stack.
constexpr size_t kMaxDepth = 32;

// Receives the parser's events. Returning false ends the parse with error_.
class Reader {
 public:
  explicit Reader(TokenizerJson* result) : result_(result) {}

  const std::string& error() const { return error_; }

  bool null() { return Scalar(nullptr); }
  bool boolean(bool value) { return Scalar(value); }
  bool number_float(double value, const std::string&) { return Scalar(value); }
  bool binary(json::binary_t&) { return false; }

  bool number_integer(int64_t value) {
    return part_ == Part::kVocab ? AddToken(value) : Scalar(value);
  }

  bool number_unsigned(uint64_t value) {
    if (part_ != Part::kVocab) return Scalar(value);
    return AddToken(static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)));
  }

  bool string(std::string& value) {
    return part_ == Part::kMerges ? AddMergeString(value) : Scalar(std::move(value));
  }

  bool key(std::string& value) {
    key_ = std::move(value);
    return true;
  }

  bool start_object(size_t) {
    if (part_ != Part::kDocument) return Fail("an object");
    if (AtModelMember("vocab")) return EnterPart(Part::kVocab, &seen_vocab_);
    return Open(json::object());
  }

  bool end_object() { return Close(); }

  bool start_array(size_t) {
    if (part_ == Part::kVocab) return Fail("an array");
    if (part_ == Part::kMerges) return OpenPair();
    if (AtModelMember("merges")) return EnterPart(Part::kMerges, &seen_merges_);
    return Open(json::array());
  }

  bool end_array() {
    if (!in_pair_) return Close();
    if (pair_size_ != 2) return Fail(fmt::format("{} strings", pair_size_));
    in_pair_ = false;
    pair_size_ = 0;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
    error_ = error.what();
    return false;
  }

 private:
  enum class Part { kDocument, kVocab, kMerges };

  bool AtModelMember(const char* name) const {
    return path_.size() == 2 && in_model_ && key_ == name;
  }

  bool EnterPart(Part part, bool* seen) {
    part_ = part;
    if (std::exchange(*seen, true)) return Fail("a second value");
    return true;
  }

  bool Fail(std::string_view found) {
    if (part_ == Part::kVocab) {
      error_ = fmt::format("model.vocab: token \"{}\" has {} where its id should be", key_, found);
    } else {
      error_ = fmt::format(
          "model.merges: entry {} has {} where two strings or one with a space should be",
          (result_->merges.size() - pair_size_) / 2, found);
    }
    return false;
  }

  bool Scalar(json value) {
    if (part_ != Part::kDocument) return Fail(value.type_name());
    Add(std::move(value));
    return true;
  }

  json* Add(json value) {
    if (path_.empty()) return &(result_->rest = std::move(value));
    if (path_.back()->is_array()) return &path_.back()->emplace_back(std::move(value));
    return &((*path_.back())[key_] = std::move(value));
  }

  bool Open(json container) {
    if (path_.size() >= kMaxDepth) {
      error_ = fmt::format("nested deeper than {} levels", kMaxDepth);
      return false;
    }
    if (path_.size() == 1) in_model_ = key_ == "model" && container.is_object();
    path_.push_back(Add(std::move(container)));
    return true;
  }

  bool Close() {
    if (part_ == Part::kDocument) {
      path_.pop_back();
    } else {
      part_ = Part::kDocument;
    }
    return true;
  }

  bool AddToken(int64_t id) {
    if (id < 0 || id >= kMaxVocabSize) {
      error_ = fmt::format("model.vocab: token \"{}\" has id {}, outside [0, {})", key_, id,
                           kMaxVocabSize);
      return false;
    }
    result_->tokens.Append(key_);
    result_->ids.push_back(static_cast<int32_t>(id));
    return true;
  }

  bool OpenPair() {
    if (in_pair_) return Fail("an array in an array");
    in_pair_ = true;
    return true;
  }

  bool AddMergeString(std::string_view value) {
    if (in_pair_) {
      if (pair_size_ == 2) return Fail("more than two strings");
      ++pair_size_;
      result_->merges.Append(value);
      return true;
    }
    // The first line of a merges.txt, which old converters took along.
    if (value.starts_with("#version")) return true;
    const size_t space = value.find(' ');
    if (space == value.npos || value.find(' ', space + 1) != value.npos) {
      return Fail(fmt::format("\"{}\"", value));
    }
    result_->merges.Append(value.substr(0, space));
    result_->merges.Append(value.substr(space + 1));
    return true;
  }

  TokenizerJson* result_;
  std::vector<json*> path_;  // the containers that are open, outermost first
  std::string key_;
  bool in_model_ = false;  // path_[1] is the member "model" of the document
  Part part_ = Part::kDocument;
  bool seen_vocab_ = false;
  bool seen_merges_ = false;
  bool in_pair_ = false;
  int pair_size_ = 0;  // strings of the pair that is open
  std::string error_;
};

absl::Status WrongMember(const json& component, const char* name, std::string_view wanted) {
  const auto type = component.find("type");
  const std::string owner =
      type != component.end() && type->is_string() ? type->get<std::string>() : "component";
  const auto member = component.find(name);
  return absl::InvalidArgumentError(
      fmt::format("{}.{} is {}, should be {}", owner, name,
                  member == component.end() ? "missing" : member->type_name(), wanted));
}

absl::Status AppendComponents(const json& component, const char* kind, const char* list,
                              std::vector<Component>* components) {
  const json& type = Member(component, "type");
  if (!type.is_string()) {
    return absl::InvalidArgumentError(
        fmt::format("{} is {}, should be an object with a type", kind, component.type_name()));
  }
  if (type != "Sequence") {
    components->push_back({type.get<std::string>(), component});
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<json> parts, ArrayMember(component, list));
  for (const json& part : parts) RETURN_IF_ERROR(AppendComponents(part, kind, list, components));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json_text) {
  TokenizerJson result;
  Reader reader(&result);
  if (!json::sax_parse(json_text.begin(), json_text.end(), &reader)) {
    return absl::InvalidArgumentError(reader.error());
  }
  if (!result.rest.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("the document is {}, should be an object", result.rest.type_name()));
  }
  return result;
}

const json& Member(const json& component, const char* name) {
  static const json* const kNull = new json();
  const auto member = component.find(name);
  return member == component.end() ? *kNull : *member;
}

absl::StatusOr<std::string> StringMember(const json& component, const char* name) {
  const json& member = Member(component, name);
  if (!member.is_string()) return WrongMember(component, name, "a string");
  return member.get<std::string>();
}

absl::StatusOr<std::string> StringMember(const json& component, const char* name,
                                         std::string fallback) {
  if (Member(component, name).is_null()) return fallback;
  return StringMember(component, name);
}

absl::StatusOr<bool> BoolMember(const json& component, const char* name, bool fallback) {
  const json& member = Member(component, name);
  if (member.is_null()) return fallback;
  if (!member.is_boolean()) return WrongMember(component, name, "a boolean");
  return member.get<bool>();
}

absl::StatusOr<int64_t> IntMember(const json& component, const char* name, int64_t fallback) {
  const json& member = Member(component, name);
  if (member.is_null()) return fallback;
  const bool fits = !member.is_number_unsigned() || member.get<uint64_t>() <= INT64_MAX;
  if (!member.is_number_integer() || !fits) return WrongMember(component, name, "an integer");
  return member.get<int64_t>();
}

absl::StatusOr<std::vector<json>> ArrayMember(const json& component, const char* name) {
  const json& member = Member(component, name);
  if (!member.is_array()) return WrongMember(component, name, "an array");
  return member.get<std::vector<json>>();
}

absl::StatusOr<std::vector<Component>> ComponentsMember(const json& document, const char* kind,
                                                        const char* list) {
  std::vector<Component> components;
  const json& root = Member(document, kind);
  if (!root.is_null()) RETURN_IF_ERROR(AppendComponents(root, kind, list, &components));
  return components;
}

absl::Status UnsupportedComponent(std::string_view kind, std::string_view type) {
  return absl::InvalidArgumentError(fmt::format("{} \"{}\" is not supported", kind, type));
}

}  // namespace everlong
