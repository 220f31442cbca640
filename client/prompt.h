// Where a prompt comes from, and that it is UTF-8 before it is sent.
#pragma once

#include <CLI/CLI.hpp>
#include <istream>
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

// The prompt's bytes as they are, checked to be UTF-8. INVALID_ARGUMENT names the option, and the
// offset of the first byte that is not UTF-8.
absl::StatusOr<std::string> ReadPrompt(const PromptOptions& options, std::istream& in);

// INVALID_ARGUMENT with the offset of the first byte of `text` that is not UTF-8; `name` is what
// the message calls it.
absl::Status CheckUtf8(std::string_view text, std::string_view name);

}  // namespace everlong
