// Chat templates: a bounded interpreter for the Jinja subset that checkpoints publish.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace everlong {

// Immutable; Render may be called from any thread.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT with line and reason where the template does not parse.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);

  virtual ~ChatTemplate() = default;

  // Renders with `context` as the global variables: messages (array of {role, content, ...}),
  // add_generation_prompt, bos_token, eos_token, tools ... INVALID_ARGUMENT with line and reason
  // when the template fails, calls raise_exception, or passes a limit on steps or output size.
  virtual absl::StatusOr<std::string> Render(const nlohmann::ordered_json& context) const = 0;
};

}  // namespace everlong
