#include "client/generation.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "client/prompt.h"

namespace everlong {
namespace {

void AddAttentionOptions(CLI::App& command, GenerationOptions& options) {
  const auto add = [&](const char* name, auto& value, const char* description, const char* type) {
    return command.add_option(name, value, description)->type_name(type)->group("Attention");
  };
  add("--attention", options.attention, "auto, dense or infinite_hip", "MODE");
  add("--preset", options.preset, "Settings by name: default, 3k, 5k ...", "NAME");
  add("--selector", options.selector, "hip, scan or window", "NAME");
  add("--positions", options.positions, "auto, true, streaming or clipped", "RULE");
  add("--budget", options.budget, "Tokens that the selector picks", "N");
  add("--sinks", options.sinks, "First tokens, which are always read", "N");
  add("--window", options.window, "Latest tokens, which are always read", "N");
  add("--refresh", options.refresh, "Output tokens a selection serves, by stage", "N,...")
      ->delimiter(',')
      ->allow_extra_args(false);
  add("--dilation", options.dilation, "scan: blocks around one that share its score", "N");
  add("--rerank", options.rerank, "scan: times the budget that are scored again", "N");
  add("--sieve", options.sieve, "scan: pages of which about one is scanned", "N");
  add("--fidelity-every", options.fidelity_every,
      "Compares one of N output tokens with dense attention", "N");
}

// The enumerator whose name is `prefix` and the word in capitals; no word: UNSPECIFIED.
template <class Enum>
absl::StatusOr<Enum> ParseWord(const std::optional<std::string>& word, const char* flag,
                               const std::string& prefix,
                               bool (*parse)(google::protobuf::ConstStringParam, Enum*)) {
  Enum value{};
  if (!word) return value;
  std::string name = prefix + *word;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (parse(name, &value) && value != Enum{}) return value;
  return absl::InvalidArgumentError(std::string(flag) + ": '" + *word + "' is not known");
}

absl::Status ApplyAttentionOptions(const GenerationOptions& options, v1::Attention& attention) {
  const auto mode =
      ParseWord(options.attention, "--attention", "ATTENTION_MODE_", v1::AttentionMode_Parse);
  if (!mode.ok()) return mode.status();
  const auto selector =
      ParseWord(options.selector, "--selector", "ATTENTION_SELECTOR_", v1::AttentionSelector_Parse);
  if (!selector.ok()) return selector.status();
  const auto positions = ParseWord(options.positions, "--positions", "ATTENTION_POSITIONS_",
                                   v1::AttentionPositions_Parse);
  if (!positions.ok()) return positions.status();
  attention.set_mode(*mode);
  attention.set_selector(*selector);
  attention.set_positions(*positions);
  if (options.preset) attention.set_preset(*options.preset);
  if (options.budget) attention.set_budget(*options.budget);
  if (options.sinks) attention.set_sinks(*options.sinks);
  if (options.window) attention.set_window(*options.window);
  if (options.dilation) attention.set_dilation(*options.dilation);
  if (options.rerank) attention.set_rerank(*options.rerank);
  if (options.sieve) attention.set_sieve(*options.sieve);
  if (options.fidelity_every) attention.set_fidelity_every(*options.fidelity_every);
  attention.mutable_refresh()->Add(options.refresh.begin(), options.refresh.end());
  return absl::OkStatus();
}

}  // namespace

void AddGenerationOptions(CLI::App& command, GenerationOptions& options) {
  constexpr char kGroup[] = "Generation";
  const auto add = [&](const char* name, auto& value, const char* description, const char* type) {
    return command.add_option(name, value, description)->type_name(type)->group(kGroup);
  };
  add("--max-output-tokens", options.max_output_tokens, "Ends the output after this many", "N");
  add("--min-output-tokens", options.min_output_tokens, "Does not end before this many", "N");
  add("--temperature", options.temperature, "0 takes the most likely token", "X");
  add("--top-k", options.top_k, "Samples among the k most likely tokens", "K");
  add("--top-p", options.top_p, "Samples among tokens that reach this probability", "P");
  add("--min-p", options.min_p, "Drops tokens less likely than P of the most likely", "P");
  add("--repetition-penalty", options.repetition_penalty, "Above 1 discourages repetition", "X");
  add("--presence-penalty", options.presence_penalty, "Discourages tokens of the output", "X");
  add("--frequency-penalty", options.frequency_penalty, "The same, per occurrence", "X");
  add("--seed", options.seed, "The same seed gives the same output", "N");
  add("--stop", options.stop, "Ends the output before this text; may be repeated", "TEXT")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", options.ignore_eos, "Goes on after the model's end of sequence")
      ->group(kGroup);
  AddAttentionOptions(command, options);
}

absl::Status ApplyGenerationOptions(const GenerationOptions& options,
                                    v1::GenerateRequest& request) {
  v1::Sampling& sampling = *request.mutable_sampling();
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.top_k) sampling.set_top_k(*options.top_k);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  if (options.min_p) sampling.set_min_p(*options.min_p);
  if (options.repetition_penalty) sampling.set_repetition_penalty(*options.repetition_penalty);
  if (options.presence_penalty) sampling.set_presence_penalty(*options.presence_penalty);
  if (options.frequency_penalty) sampling.set_frequency_penalty(*options.frequency_penalty);
  if (options.seed) sampling.set_seed(*options.seed);
  v1::Stopping& stopping = *request.mutable_stopping();
  if (options.max_output_tokens) stopping.set_max_output_tokens(*options.max_output_tokens);
  if (options.min_output_tokens) stopping.set_min_output_tokens(*options.min_output_tokens);
  stopping.set_ignore_eos(options.ignore_eos);
  v1::Attention attention;
  if (absl::Status status = ApplyAttentionOptions(options, attention); !status.ok()) return status;
  if (attention.ByteSizeLong() > 0) *request.mutable_attention() = std::move(attention);
  for (const std::string& stop : options.stop) {
    if (absl::Status status = CheckUtf8(stop, "--stop"); !status.ok()) return status;
    stopping.add_stop(stop);
  }
  return absl::OkStatus();
}

void AddMessage(std::string role, std::string content, v1::Chat& chat) {
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role(std::move(role));
  message.set_content(std::move(content));
}

}  // namespace everlong
