#include "engine/chat_template.h"

#include "engine/jinja/interpreter.h"
#include "engine/jinja/parser.h"
#include "engine/text.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace everlong {
namespace {

absl::Status ToStatus(const jinja::Error& error) {
  if (error.line == 0) {
    return absl::InvalidArgumentError(fmt::format("chat template: {}", error.what()));
  }
  return absl::InvalidArgumentError(
      fmt::format("chat template, line {}: {}", error.line, error.what()));
}

class JinjaTemplate : public ChatTemplate {
 public:
  explicit JinjaTemplate(std::unique_ptr<const jinja::Program> program)
      : program_(std::move(program)) {}

  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& context) const override {
    try {
      return jinja::Render(*program_, context);
    } catch (const jinja::Error& error) {
      return ToStatus(error);
    }
  }

 private:
  const std::unique_ptr<const jinja::Program> program_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  if (const size_t at = FindInvalidUtf8(source); at != std::string_view::npos) {
    return absl::InvalidArgumentError(fmt::format("chat template: not valid UTF-8 at byte {}", at));
  }
  try {
    return std::make_unique<JinjaTemplate>(jinja::ParseTemplate(source));
  } catch (const jinja::Error& error) {
    return ToStatus(error);
  }
}

}  // namespace everlong
