#include "engine/tokenizer/post_processor.h"

#include <fmt/format.h>

#include <string>

#include "engine/status.h"
#include "engine/tokenizer/json.h"

namespace everlong {
namespace {

using nlohmann::json;

absl::StatusOr<std::vector<int32_t>> SpecialTokenIds(const json& special_tokens,
                                                     const std::string& name, int64_t vocab_size) {
  const json& token = Member(special_tokens, name.c_str());
  if (token.is_null()) {
    return absl::InvalidArgumentError(
        fmt::format("TemplateProcessing.special_tokens lacks \"{}\"", name));
  }
  ASSIGN_OR_RETURN(const std::vector<json> members, ArrayMember(token, "ids"));
  std::vector<int32_t> ids;
  for (const json& member : members) {
    const bool is_id =
        member.is_number_unsigned() && member.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!is_id) {
      return absl::InvalidArgumentError(
          fmt::format("TemplateProcessing.special_tokens[\"{}\"] has id {}, should be in [0, {})",
                      name, member.dump(), vocab_size));
    }
    ids.push_back(member.get<int32_t>());
  }
  return ids;
}

// What a template of {"Sequence": {"id": "A"}} and {"SpecialToken": {"id": name}} adds.
absl::StatusOr<SpecialFrame> FrameOfTemplate(const json& component, int64_t vocab_size) {
  ASSIGN_OR_RETURN(const std::vector<json> pieces, ArrayMember(component, "single"));
  const json& special_tokens = Member(component, "special_tokens");
  SpecialFrame frame;
  int num_texts = 0;
  for (const json& piece : pieces) {
    if (piece.contains("Sequence")) {
      ++num_texts;
      continue;
    }
    ASSIGN_OR_RETURN(const std::string name, StringMember(Member(piece, "SpecialToken"), "id"));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                     SpecialTokenIds(special_tokens, name, vocab_size));
    std::vector<int32_t>& side = num_texts == 0 ? frame.before : frame.after;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (num_texts != 1) {
    return absl::InvalidArgumentError(
        fmt::format("TemplateProcessing.single has {} sequences, should be 1", num_texts));
  }
  return frame;
}

}  // namespace

absl::StatusOr<SpecialFrame> SpecialFrameFromJson(const json& document, int64_t vocab_size) {
  ASSIGN_OR_RETURN(const std::vector<Component> components,
                   ComponentsMember(document, "post_processor", "processors"));
  SpecialFrame frame;
  for (const Component& component : components) {
    if (component.type == "ByteLevel") continue;
    if (component.type != "TemplateProcessing") {
      return UnsupportedComponent("post_processor", component.type);
    }
    ASSIGN_OR_RETURN(const SpecialFrame outer, FrameOfTemplate(component.json, vocab_size));
    frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
    frame.after.insert(frame.after.end(), outer.after.begin(), outer.after.end());
  }
  return frame;
}

}  // namespace everlong
