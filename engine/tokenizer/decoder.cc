#include "engine/tokenizer/decoder.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "engine/status.h"
#include "engine/text.h"
#include "engine/tokenizer/json.h"
#include "engine/tokenizer/pattern.h"

namespace everlong {
namespace {

using nlohmann::json;

using Step = std::function<absl::Status(bool first, std::string* text)>;

// What the decoders so far leave: tokens as text, tokens as bytes, or one text.
enum class Stage { kText, kBytes, kWhole };

absl::Status Keep(bool, std::string*) {
  return absl::OkStatus();
}

absl::Status SeparateBySpace(bool first, std::string* text) {
  if (!first) text->insert(text->begin(), ' ');
  return absl::OkStatus();
}

absl::Status DecodeByteLevel(bool, std::string* text) {
  *text = BytesFromAlphabet(*text).value_or(*text);
  return absl::OkStatus();
}

// <0x41> is the byte 0x41.
absl::Status DecodeByteFallback(bool, std::string* text) {
  if (text->size() != 6 || !text->starts_with("<0x") || text->back() != '>') {
    return absl::OkStatus();
  }
  uint8_t byte = 0;
  const char* const digits_end = text->data() + 5;
  const auto [end, error] = std::from_chars(text->data() + 3, digits_end, byte, 16);
  if (error == std::errc() && end == digits_end) text->assign(1, static_cast<char>(byte));
  return absl::OkStatus();
}

// `space` becomes a space; where the tokenizer put one before the text it vanishes from the first
// token.
auto DecodeMetaspace(const Pattern& space, bool has_prefix) {
  return [space, has_prefix](bool first, std::string* text) {
    return space.Replace(first && has_prefix ? "" : " ", text);
  };
}

// Takes `prefix` from the beginning of the text.
auto StripFirst(const std::string& prefix) {
  return [prefix](bool first, std::string* text) {
    if (first && text->starts_with(prefix)) text->erase(0, prefix.size());
    return absl::OkStatus();
  };
}

absl::StatusOr<Step> MakeStep(const std::string& type, const json& component) {
  if (type == "ByteLevel") return DecodeByteLevel;
  if (type == "ByteFallback") return DecodeByteFallback;
  if (type == "Fuse") return Keep;
  if (type == "Replace") {
    ASSIGN_OR_RETURN(const Pattern pattern, Pattern::FromJson(component));
    ASSIGN_OR_RETURN(const std::string content, StringMember(component, "content"));
    return [pattern, content](bool, std::string* text) { return pattern.Replace(content, text); };
  }
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const std::string replacement, StringMember(component, "replacement"));
    ASSIGN_OR_RETURN(const Pattern space, Pattern::Literal(replacement));
    ASSIGN_OR_RETURN(const bool has_prefix, BoolMember(component, "add_prefix_space", true));
    ASSIGN_OR_RETURN(const std::string scheme,
                     StringMember(component, "prepend_scheme", has_prefix ? "always" : "never"));
    return DecodeMetaspace(space, scheme != "never");
  }
  if (type == "Strip") {
    ASSIGN_OR_RETURN(const std::string content, StringMember(component, "content"));
    ASSIGN_OR_RETURN(const int64_t start, IntMember(component, "start", 0));
    ASSIGN_OR_RETURN(const int64_t stop, IntMember(component, "stop", 0));
    if (start != 1 || stop != 0) {
      return UnsupportedComponent("decoder Strip", fmt::format("start {}, stop {}", start, stop));
    }
    return StripFirst(content);
  }
  return UnsupportedComponent("decoder", type);
}

// Strip applies to what Fuse or ByteLevel make one text; the others look at tokens.
absl::Status CheckOrder(const std::vector<Component>& components) {
  Stage stage = Stage::kText;
  for (const Component& component : components) {
    const std::string& type = component.type;
    const Stage wanted = type == "Strip" ? Stage::kWhole : Stage::kText;
    if (type != "Fuse" && stage != wanted) {
      return UnsupportedComponent("decoder at this place", type);
    }
    if (type == "ByteFallback") stage = Stage::kBytes;
    if (type == "ByteLevel" || type == "Fuse") stage = Stage::kWhole;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::FromJson(const json& document) {
  ASSIGN_OR_RETURN(const std::vector<Component> components,
                   ComponentsMember(document, "decoder", "decoders"));
  RETURN_IF_ERROR(CheckOrder(components));
  TokenDecoder decoder;
  if (components.empty()) decoder.steps_.emplace_back(SeparateBySpace);
  for (const Component& component : components) {
    ASSIGN_OR_RETURN(Step step, MakeStep(component.type, component.json));
    decoder.steps_.push_back(std::move(step));
  }
  return decoder;
}

absl::StatusOr<std::string> TokenDecoder::Decode(std::string content, bool first) const {
  for (const Step& step : steps_) RETURN_IF_ERROR(step(first, &content));
  return content;
}

}  // namespace everlong
