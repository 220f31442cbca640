// Shorthands of the chat template tests.
#pragma once

#include <string>
#include <string_view>

#include "engine/chat_template.h"
#include "nlohmann/json.hpp"

namespace everlong {

inline absl::StatusOr<std::string> Render(std::string_view source,
                                          const nlohmann::ordered_json& context) {
  const auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(context);
}

// The text, or the error's message.
inline std::string Rendered(std::string_view source, const nlohmann::ordered_json& context =
                                                         nlohmann::ordered_json::object()) {
  const auto text = Render(source, context);
  return text.ok() ? *text : std::string{text.status().message()};
}

}  // namespace everlong
