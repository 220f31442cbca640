#include <fmt/format.h>

#include <memory>
#include <ostream>

#include "absl/strings/numbers.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/prompt.h"
#include "client/stream_printer.h"

namespace everlong {
namespace {

struct TokenizeOptions {
  ConnectionOptions connection;
  std::string model;
  PromptOptions prompt;
  bool decode = false;
  bool no_special_tokens = false;
  bool json = false;
};

// Ids between white space, commas and brackets, so that what tokenize and JSON arrays write is
// read.
absl::StatusOr<v1::DetokenizeRequest> ParseTokenIds(std::string_view text) {
  constexpr std::string_view kSeparators = " \t\r\n,[]";
  v1::DetokenizeRequest request;
  for (size_t begin = 0; (begin = text.find_first_not_of(kSeparators, begin)) != text.npos;) {
    const std::string_view word =
        text.substr(begin, text.find_first_of(kSeparators, begin) - begin);
    int32_t id = 0;
    if (!absl::SimpleAtoi(std::string(word), &id)) {
      return absl::InvalidArgumentError(fmt::format("'{}' is no token id", word));
    }
    request.add_token_ids(id);
    begin += word.size();
  }
  return request;
}

int Decode(const TokenizeOptions& options, std::string_view text, Console& console) {
  absl::StatusOr<v1::DetokenizeRequest> request = ParseTokenIds(text);
  if (!request.ok()) return FailUsage(console, request.status());
  request->set_model(options.model);
  request->set_skip_special_tokens(options.no_special_tokens);
  const auto response = Connection(options.connection).Detokenize(*request);
  if (!response.ok()) return Finish(console, response.status());
  const bool end_line = console.out_is_terminal && !response->text().ends_with('\n');
  console.out << (options.json ? JsonLine(*response) : response->text() + (end_line ? "\n" : ""));
  return Finish(console, absl::OkStatus());
}

int Encode(const TokenizeOptions& options, std::string text, Console& console) {
  v1::TokenizeRequest request;
  request.set_model(options.model);
  request.set_text(std::move(text));
  if (options.no_special_tokens) request.set_add_special_tokens(false);
  const auto response = Connection(options.connection).Tokenize(request);
  if (!response.ok()) return Finish(console, response.status());
  console.out << (options.json ? JsonLine(*response)
                               : fmt::format("{}\n", fmt::join(response->token_ids(), " ")));
  return Finish(console, absl::OkStatus());
}

int RunTokenize(const TokenizeOptions& options, Console& console) {
  absl::StatusOr<std::string> text = ReadPrompt(options.prompt, console.in);
  if (!text.ok()) return FailUsage(console, text.status());
  return options.decode ? Decode(options, *text, console)
                        : Encode(options, *std::move(text), console);
}

}  // namespace

Command AddTokenize(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("tokenize", "Turns text into token ids, or back");
  const auto options = std::make_shared<TokenizeOptions>();
  AddPromptOptions(command, options->prompt);
  command.add_flag("--decode", options->decode, "Turns token ids into text");
  command.add_flag("--no-special-tokens", options->no_special_tokens,
                   "Neither adds the model's own tokens nor, with --decode, shows them");
  command.add_flag("--json", options->json, "Prints the response as a line of JSON");
  AddConnectionOptions(command, options->connection);
  AddModelOption(command, options->model);
  return [options](Console& console) { return RunTokenize(*options, console); };
}

}  // namespace everlong
