#include "client/prompt.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

namespace everlong {
namespace {

// Length of the well-formed sequence at the start of `text`, 0 where there is none: no overlong
// form, surrogate or value above U+10FFFF (Unicode 15, table 3-7).
size_t SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : uint8_t{0}; };
  const auto is_continuation = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t first = byte(0);
  const uint8_t second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4 || !is_continuation(1)) return 0;
  if (first < 0xE0) return 2;
  if (first == 0xE0 && second < 0xA0) return 0;
  if (first == 0xED && second > 0x9F) return 0;
  if (first == 0xF0 && second < 0x90) return 0;
  if (first == 0xF4 && second > 0x8F) return 0;
  if (!is_continuation(2)) return 0;
  if (first < 0xF0) return 3;
  return is_continuation(3) ? 4 : 0;
}

absl::StatusOr<std::string> ReadAll(std::istream& in, std::string_view name) {
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (in.read(buffer.data(), buffer.size()) || in.gcount() > 0) {
    text.append(buffer.data(), in.gcount());
  }
  if (in.bad()) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", name, std::strerror(errno)));
  }
  return text;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(fmt::format("--prompt-file {}: {}", path, strerror(errno)));
  }
  return ReadAll(file, fmt::format("--prompt-file {}", path));
}

}  // namespace

void AddPromptOptions(CLI::App& command, PromptOptions& options) {
  command.add_option("PROMPT", options.argument, "Text, or - for standard input");
  command.add_option("--prompt", options.text, "Text")->type_name("TEXT");
  command.add_option("--prompt-file", options.file, "Reads the text from a file")
      ->type_name("FILE");
}

absl::StatusOr<std::string> ReadPrompt(const PromptOptions& options, std::istream& in) {
  if (!!options.argument + !!options.text + !!options.file != 1) {
    return absl::InvalidArgumentError(
        "give one of --prompt TEXT, --prompt-file FILE or - (standard input)");
  }
  const bool from_stdin = options.argument == "-";
  const std::string name = options.file ? "--prompt-file " + *options.file
                           : from_stdin ? "standard input"
                                        : "--prompt";
  absl::StatusOr<std::string> text = options.file ? ReadFile(*options.file)
                                     : from_stdin
                                         ? ReadAll(in, name)
                                         : options.text.value_or(options.argument.value_or(""));
  if (!text.ok()) return text;
  if (absl::Status status = CheckUtf8(*text, name); !status.ok()) return status;
  return text;
}

absl::Status CheckUtf8(std::string_view text, std::string_view name) {
  for (size_t offset = 0; offset < text.size();) {
    const size_t length = SequenceLength(text.substr(offset));
    if (length == 0) {
      return absl::InvalidArgumentError(fmt::format("{}: invalid UTF-8 at byte {} (0x{:02X})", name,
                                                    offset, uint8_t(text[offset])));
    }
    offset += length;
  }
  return absl::OkStatus();
}

}  // namespace everlong
