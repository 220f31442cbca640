// Renders chat templates for an oracle: reads one JSON object {"template", "context"} a line, and
// answers each with {"text"} or {"error"} on a line.
#include <iostream>
#include <string>

#include "engine/chat_template.h"
#include "nlohmann/json.hpp"

namespace {

absl::StatusOr<std::string> Render(const nlohmann::ordered_json& request) {
  const auto parsed =
      everlong::ChatTemplate::Parse(request["template"].get_ref<const std::string&>());
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->Render(request["context"]);
}

}  // namespace

int main() try {
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = Render(nlohmann::ordered_json::parse(line));
    nlohmann::ordered_json answer;
    if (text.ok()) {
      answer["text"] = *text;
    } else {
      answer["error"] = std::string{text.status().message()};
    }
    std::cout << answer.dump() << std::endl;
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
