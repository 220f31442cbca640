#include "client/logprob_table.h"

#include <fmt/format.h>

namespace everlong {

std::string Quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      quoted += fmt::format("\\x{:02x}", static_cast<int>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string LogprobTable(std::string_view title, const PositionLogprobs& positions,
                         int64_t first_position,
                         const std::function<std::string(int32_t)>& token_text) {
  std::string table =
      fmt::format("{}\n{:>8} {:>8} {:>9}  {}\n", title, "position", "token", "logprob", "text");
  for (const v1::PositionLogprobs& position : positions) {
    const v1::TokenLogprob& chosen = position.chosen();
    std::string line =
        fmt::format("{:>8} {:>8} {:>9.4f}  ", first_position++, chosen.token(), chosen.logprob());
    const std::string text = Quote(token_text(chosen.token()));
    line += position.top().empty() ? text : fmt::format("{:<16}  most likely:", text);
    for (const v1::TokenLogprob& top : position.top()) {
      line += fmt::format(" {} {:.4f}", Quote(token_text(top.token())), top.logprob());
    }
    table += line + '\n';
  }
  return table;
}

}  // namespace everlong
