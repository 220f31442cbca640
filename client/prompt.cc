#include "client/prompt.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <istream>
#include <vector>

#include "engine/text.h"

namespace everlong {
namespace {

// Protobuf writes no message of 2^31 bytes; this leaves room for the request's other fields.
constexpr size_t kMaxPromptBytes = 2'000'000'000;

absl::StatusOr<std::string> ReadAll(std::istream& in, std::string_view name) {
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (in.read(buffer.data(), buffer.size()) || in.gcount() > 0) {
    text.append(buffer.data(), in.gcount());
    if (text.size() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: longer than {} bytes, which is all one request can hold", name, kMaxPromptBytes));
    }
  }
  if (in.bad()) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", name, std::strerror(errno)));
  }
  return text;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, std::string_view name) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(fmt::format("{}: {}", name, std::strerror(errno)));
  return ReadAll(file, name);
}

}  // namespace

void AddPromptOptions(CLI::App& command, PromptOptions& options) {
  command.add_option("PROMPT", options.argument, "Text, or - for standard input");
  command.add_option("--prompt", options.text, "Text")->type_name("TEXT");
  command.add_option("--prompt-file", options.file, "Reads the text from a file")
      ->type_name("FILE");
}

absl::StatusOr<std::string> ReadPrompt(const PromptOptions& options, std::istream& in) {
  const int given =
      options.argument.has_value() + options.text.has_value() + options.file.has_value();
  if (given != 1) {
    return absl::InvalidArgumentError(fmt::format(
        "{}; give one of PROMPT, --prompt TEXT, --prompt-file FILE or - for standard input",
        given == 0 ? "no prompt" : "more than one prompt"));
  }
  std::string name = "prompt";
  absl::StatusOr<std::string> prompt;
  if (options.file) {
    name = "--prompt-file " + *options.file;
    prompt = ReadFile(*options.file, name);
  } else if (options.argument == "-") {
    name = "standard input";
    prompt = ReadAll(in, name);
  } else {
    prompt = options.text ? *options.text : *options.argument;
  }
  if (!prompt.ok()) return prompt;
  if (absl::Status status = CheckUtf8(*prompt, name); !status.ok()) return status;
  return prompt;
}

absl::Status CheckUtf8(std::string_view text, std::string_view name) {
  const size_t offset = FindInvalidUtf8(text);
  if (offset == std::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: invalid UTF-8 at byte {} (0x{:02X})", name,
                                                offset, static_cast<uint8_t>(text[offset])));
}

}  // namespace everlong
