// Where a prompt comes from, and that it is UTF-8 before it is sent.
#pragma once

#include <CLI/CLI.hpp>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace everlong {

// Exactly one is given; checked when the prompt is read.
struct PromptOptions {
  std::optional<std::string> argument;  // the text itself, or "-": standard input
  std::optional<std::string> text;
  std::optional<std::string> file;
};

// Adds PROMPT, --prompt and --prompt-file.
void AddPromptOptions(CLI::App& command, PromptOptions& options);

// The prompt's bytes as they are. The error names the option, and the offset of the first byte that
// is not UTF-8.
absl::StatusOr<std::string> ReadPrompt(const PromptOptions& options, std::istream& in);

// `name` is what the message calls `text`.
absl::Status CheckUtf8(std::string_view text, std::string_view name);

}  // namespace everlong
