#include <memory>
#include <unordered_map>

#include "client/commands.h"
#include "client/connection.h"
#include "client/generation.h"
#include "client/prompt.h"
#include "client/stream_printer.h"

namespace everlong {
namespace {

struct GenerateOptions {
  ConnectionOptions connection;
  std::string model;
  PromptOptions prompt;
  GenerationOptions generation;
  bool chat = false;
  std::optional<std::string> system;
  std::optional<int> logprobs;
  bool prompt_logprobs = false;
  int samples = 1;
  bool json = false;
  bool verbose = false;
};

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& options, std::istream& in) {
  absl::StatusOr<std::string> prompt = ReadPrompt(options.prompt, in);
  if (!prompt.ok()) return prompt.status();
  v1::GenerateRequest request;
  request.set_model(options.model);
  if (options.chat || options.system) {
    if (options.system) {
      if (absl::Status s = CheckUtf8(*options.system, "--system"); !s.ok()) return s;
      AddMessage("system", *options.system, *request.mutable_chat());
    }
    AddMessage("user", *std::move(prompt), *request.mutable_chat());
  } else {
    request.set_text(*std::move(prompt));
  }
  if (absl::Status s = ApplyGenerationOptions(options.generation, request); !s.ok()) return s;
  if (options.logprobs) {
    request.mutable_logprobs()->set_output(true);
    request.mutable_logprobs()->set_top(*options.logprobs);
  }
  if (options.prompt_logprobs) request.mutable_logprobs()->set_prompt(true);
  if (options.samples != 1) request.set_num_samples(options.samples);
  return request;
}

// Asks the server for each token's text once. A text that cannot be had is left empty: the table of
// which it is part has its id.
class TokenTexts {
 public:
  TokenTexts(Connection& connection, std::string model)
      : connection_(connection), model_(std::move(model)) {}

  const std::string& operator()(int32_t token) {
    const auto [entry, is_new] = texts_.try_emplace(token);
    if (is_new) {
      v1::DetokenizeRequest request;
      request.set_model(model_);
      request.add_token_ids(token);
      if (auto response = connection_.Detokenize(request); response.ok()) {
        entry->second = std::move(*response->mutable_text());
      }
    }
    return entry->second;
  }

 private:
  Connection& connection_;
  const std::string model_;
  std::unordered_map<int32_t, std::string> texts_;
};

int RunGenerate(const GenerateOptions& options, Console& console) {
  const absl::StatusOr<v1::GenerateRequest> request = MakeRequest(options, console.in);
  if (!request.ok()) return FailUsage(console, request.status());
  Connection connection(options.connection);
  TokenTexts token_texts(connection, options.model);
  GenerateEnd end;
  {
    StreamPrinter printer(console, {.json = options.json,
                                    .summary = options.verbose || console.err_is_terminal,
                                    .num_samples = options.samples,
                                    .token_text = std::ref(token_texts)});
    end = Generate(connection, *request, console.interrupts, [&](const v1::GenerateEvent& event) {
      printer.Handle(event);
      return console.out.good();
    });
  }
  if (end.interrupted) return kExitInterrupted;
  return Finish(console, end.status);
}

}  // namespace

Command AddGenerate(CLI::App& app) {
  CLI::App& command = *app.add_subcommand("generate", "Generates text from a prompt");
  const auto options = std::make_shared<GenerateOptions>();
  AddPromptOptions(command, options->prompt);
  command.add_flag("--chat", options->chat, "The prompt is a user's message to the model");
  command.add_option("--system", options->system, "System message before it; implies --chat")
      ->type_name("TEXT");
  AddConnectionOptions(command, options->connection);
  AddModelOption(command, options->model);
  AddGenerationOptions(command, options->generation);
  command.add_option("--samples", options->samples, "Outputs to sample from the prompt")
      ->type_name("N");
  command
      .add_option("--logprobs", options->logprobs,
                  "Log probability of each output token and of the N most likely in its place")
      ->type_name("N");
  command.add_flag(
      "--prompt-logprobs", options->prompt_logprobs,
      "Log probability of each prompt token; with --logprobs N, also the N most likely");
  command.add_flag("--json", options->json, "Prints each event as a line of JSON");
  command.add_flag("-v,--verbose", options->verbose,
                   "Usage and timings at the end, also where standard error is no terminal");
  return [options](Console& console) { return RunGenerate(*options, console); };
}

}  // namespace everlong
