#include "engine/tokenizer/normalizer.h"

#include <array>
#include <string_view>
#include <utility>

#include "engine/status.h"
#include "engine/text.h"
#include "engine/tokenizer/json.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"

namespace everlong {
namespace {

using nlohmann::json;

using Step = std::function<absl::Status(std::string* text)>;

constexpr std::array<std::pair<std::string_view, NormalForm>, 4> kForms = {{
    {"NFC", NormalForm::kNfc},
    {"NFD", NormalForm::kNfd},
    {"NFKC", NormalForm::kNfkc},
    {"NFKD", NormalForm::kNfkd},
}};

// The step that `rewrite`, which cannot fail, makes.
template <typename Rewrite>
auto Infallible(Rewrite rewrite) {
  return [rewrite](std::string* text) {
    *text = rewrite(*text);
    return absl::OkStatus();
  };
}

absl::StatusOr<Step> MakeStep(const std::string& type, const json& component) {
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    return Infallible([form = form](std::string_view text) { return ToNormalForm(text, form); });
  }
  if (type == "Lowercase") return Infallible(ToLowercase);
  if (type == "Strip") {
    ASSIGN_OR_RETURN(const bool left, BoolMember(component, "strip_left", false));
    ASSIGN_OR_RETURN(const bool right, BoolMember(component, "strip_right", false));
    return Infallible([left, right](std::string_view text) {
      if (left) text = StripLeft(text);
      return std::string(right ? StripRight(text) : text);
    });
  }
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string prefix, StringMember(component, "prepend"));
    return Infallible(
        [prefix](const std::string& text) { return text.empty() ? text : prefix + text; });
  }
  if (type == "Replace") {
    ASSIGN_OR_RETURN(const Pattern pattern, Pattern::FromJson(component));
    ASSIGN_OR_RETURN(const std::string content, StringMember(component, "content"));
    return [pattern, content](std::string* text) { return pattern.Replace(content, text); };
  }
  return UnsupportedComponent("normalizer", type);
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::FromJson(const json& document) {
  ASSIGN_OR_RETURN(const std::vector<Component> components,
                   ComponentsMember(document, "normalizer", "normalizers"));
  Normalizer normalizer;
  for (const Component& component : components) {
    ASSIGN_OR_RETURN(Step step, MakeStep(component.type, component.json));
    normalizer.steps_.push_back(std::move(step));
  }
  return normalizer;
}

absl::Status Normalizer::Apply(std::string* text) const {
  for (const Step& step : steps_) RETURN_IF_ERROR(step(text));
  return absl::OkStatus();
}

}  // namespace everlong
