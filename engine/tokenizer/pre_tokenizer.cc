#include "engine/tokenizer/pre_tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "engine/status.h"
#include "engine/tokenizer/json.h"

namespace everlong {
namespace {

using nlohmann::json;

using Step = PreTokenizerStep;

constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kBehaviors = {{
    {"Isolated", SplitBehavior::kIsolated},
    {"Removed", SplitBehavior::kRemoved},
    {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
    {"MergedWithNext", SplitBehavior::kMergedWithNext},
    {"Contiguous", SplitBehavior::kContiguous},
}};

constexpr std::array<std::pair<std::string_view, SpacePrefix>, 3> kPrependSchemes = {{
    {"always", SpacePrefix::kAlways},
    {"first", SpacePrefix::kAtStart},
    {"never", SpacePrefix::kNever},
}};

// The value that the member `name` of `component` names in `values`.
template <typename Values>
auto NamedMember(const json& component, const char* name, const std::string& fallback,
                 const Values& values) -> absl::StatusOr<typename Values::value_type::second_type> {
  ASSIGN_OR_RETURN(const std::string value, StringMember(component, name, fallback));
  for (const auto& [known, result] : values) {
    if (value == known) return result;
  }
  return UnsupportedComponent(fmt::format("pre_tokenizer {}", name), value);
}

absl::StatusOr<Step> ByteLevelStep(const json& component) {
  ASSIGN_OR_RETURN(const bool has_prefix, BoolMember(component, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, BoolMember(component, "use_regex", true));
  Step step = {.space = " ", .prefix = has_prefix ? SpacePrefix::kAlways : SpacePrefix::kNever};
  if (use_regex) {
    ASSIGN_OR_RETURN(step.pattern, Pattern::Regex(kByteLevelWords));
  }
  return step;
}

absl::StatusOr<Step> MetaspaceStep(const json& component) {
  // Files have one of these two; the former is older.
  ASSIGN_OR_RETURN(const bool has_prefix, BoolMember(component, "add_prefix_space", true));
  ASSIGN_OR_RETURN(
      const SpacePrefix prefix,
      NamedMember(component, "prepend_scheme", has_prefix ? "always" : "never", kPrependSchemes));
  ASSIGN_OR_RETURN(const bool split, BoolMember(component, "split", true));
  ASSIGN_OR_RETURN(const std::string space, StringMember(component, "replacement"));
  ASSIGN_OR_RETURN(Pattern pattern, Pattern::Literal(space));
  Step step = {.space = space, .prefix = prefix, .behavior = SplitBehavior::kMergedWithNext};
  if (split) step.pattern = std::move(pattern);
  return step;
}

absl::StatusOr<Step> SplitStep(const json& component) {
  ASSIGN_OR_RETURN(const Pattern pattern, Pattern::FromJson(component));
  ASSIGN_OR_RETURN(const auto behavior, NamedMember(component, "behavior", "", kBehaviors));
  ASSIGN_OR_RETURN(const bool invert, BoolMember(component, "invert", false));
  return Step{.pattern = pattern, .behavior = behavior, .invert = invert};
}

absl::StatusOr<Step> RegexStep(std::string_view expression, SplitBehavior behavior,
                               bool invert = false) {
  ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Regex(expression));
  return Step{.pattern = pattern, .behavior = behavior, .invert = invert};
}

absl::StatusOr<Step> MakeStep(const std::string& type, const json& component) {
  if (type == "ByteLevel") return ByteLevelStep(component);
  if (type == "Metaspace") return MetaspaceStep(component);
  if (type == "Split") return SplitStep(component);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, BoolMember(component, "individual_digits", false));
    return RegexStep(R"(\p{N})",
                     individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const auto behavior,
                     NamedMember(component, "behavior", "Isolated", kBehaviors));
    return RegexStep(R"([\p{P}$+<=>^`|~])", behavior);
  }
  if (type == "Whitespace") {
    return RegexStep(fmt::format("[{0}]+|[^{0}\\s]+", kWordClass), SplitBehavior::kRemoved, true);
  }
  if (type == "WhitespaceSplit") return RegexStep(R"(\s)", SplitBehavior::kRemoved);
  return UnsupportedComponent("pre_tokenizer", type);
}

// The text that `step` cuts, in `*storage` where it is not `text` itself.
std::string_view Rewrite(const Step& step, std::string_view text, bool at_start,
                         std::string* storage) {
  if (step.space.empty()) return text;
  const bool wants_prefix =
      step.prefix == SpacePrefix::kAlways || (step.prefix == SpacePrefix::kAtStart && at_start);
  const bool adds_prefix = wants_prefix && text[0] != ' ' && !text.starts_with(step.space);
  if (!adds_prefix && step.space == " ") return text;
  if (adds_prefix) *storage = step.space;
  for (const char c : text) {
    if (c == ' ') {
      *storage += step.space;
    } else {
      storage->push_back(c);
    }
  }
  return *storage;
}

// Whether a part continues the piece that ends with the part before it.
bool Joins(SplitBehavior behavior, bool previous_is_match, bool is_match) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      return false;
    case SplitBehavior::kMergedWithPrevious:
      return is_match && !previous_is_match;
    case SplitBehavior::kMergedWithNext:
      return !is_match && previous_is_match;
    case SplitBehavior::kContiguous:
      return is_match == previous_is_match;
  }
  return false;
}

// Calls `visit` with the pieces, some of which may be empty.
absl::Status Cut(const Step& step, std::string_view text,
                 absl::FunctionRef<absl::Status(std::string_view piece)> visit) {
  if (!step.pattern) return visit(text);
  std::optional<std::string_view> piece;  // parts joined so far
  bool previous_is_match = false;
  RETURN_IF_ERROR(step.pattern->Split(text, [&](std::string_view part, bool is_match) {
    is_match ^= step.invert;
    if (step.behavior == SplitBehavior::kRemoved) return is_match ? absl::OkStatus() : visit(part);
    if (piece && Joins(step.behavior, previous_is_match, is_match)) {
      piece = std::string_view(piece->data(), piece->size() + part.size());
    } else {
      if (piece) RETURN_IF_ERROR(visit(*piece));
      piece = part;
    }
    previous_is_match = is_match;
    return absl::OkStatus();
  }));
  return piece ? visit(*piece) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const json& document) {
  ASSIGN_OR_RETURN(const std::vector<Component> components,
                   ComponentsMember(document, "pre_tokenizer", "pretokenizers"));
  PreTokenizer result;
  for (const Component& component : components) {
    // It would see the alphabet that stands for bytes.
    if (result.byte_level_) {
      return UnsupportedComponent("pre_tokenizer behind ByteLevel", component.type);
    }
    ASSIGN_OR_RETURN(Step step, MakeStep(component.type, component.json));
    result.steps_.push_back(std::move(step));
    result.byte_level_ = component.type == "ByteLevel";
  }
  return result;
}

absl::Status PreTokenizer::SplitFrom(size_t index, std::string_view text, bool at_start,
                                     Emit emit) const {
  if (text.empty()) return absl::OkStatus();
  if (index == steps_.size()) {
    emit(text);
    return absl::OkStatus();
  }
  std::string storage;
  const std::string_view rewritten = Rewrite(steps_[index], text, at_start, &storage);
  return Cut(steps_[index], rewritten, [&](std::string_view piece) {
    return SplitFrom(index + 1, piece, at_start && piece.data() == rewritten.data(), emit);
  });
}

}  // namespace everlong
