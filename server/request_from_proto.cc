#include "server/request_from_proto.h"

#include <optional>
#include <string_view>
#include <utility>

#include "engine/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace everlong {
namespace {

constexpr int kMaxStopStrings = 16;
constexpr int kMaxStopBytes = 1024;
constexpr int kMaxStopTokens = 64;
constexpr int kMaxLogitBias = 1024;
constexpr int kMaxPriority = 100;

absl::Status Invalid(const std::string& message) {
  return absl::InvalidArgumentError(message);
}

absl::Status InRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid(fmt::format("{}: {} is outside [{}, {}]", field, value, low, high));
}

absl::Status AtMost(const char* field, int count, int limit) {
  if (count <= limit) return absl::OkStatus();
  return Invalid(fmt::format("{}: {} entries, the limit is {}", field, count, limit));
}

// The text of the first of `ids`, or "" where there is none.
std::string TokenText(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  if (ids.empty() || ids[0] >= tokenizer.vocab_size()) return "";
  return tokenizer.TokenBytes(ids[0]);
}

absl::StatusOr<std::vector<int32_t>> PromptTokens(const v1::GenerateRequest& proto,
                                                  const ServedModel& served) {
  switch (proto.input_case()) {
    case v1::GenerateRequest::kText:
      return TextTokens(proto.text(), /*add_special=*/true, served);
    case v1::GenerateRequest::kTokenIds:
      return std::vector<int32_t>(proto.token_ids().ids().begin(), proto.token_ids().ids().end());
    case v1::GenerateRequest::kChat:
      return ChatTokens(proto.chat(), served);
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return Invalid("input: one of text, token_ids and chat is required");
}

absl::Status ReadSampling(const v1::Sampling& proto, Sampling& sampling) {
  RETURN_IF_ERROR(AtMost("sampling.logit_bias", proto.logit_bias_size(), kMaxLogitBias));
  if (proto.has_temperature()) sampling.temperature = proto.temperature();
  sampling.top_k = proto.top_k();
  if (proto.has_top_p()) sampling.top_p = proto.top_p();
  sampling.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) sampling.repetition_penalty = proto.repetition_penalty();
  sampling.presence_penalty = proto.presence_penalty();
  sampling.frequency_penalty = proto.frequency_penalty();
  if (proto.has_seed()) sampling.seed = proto.seed();
  for (const v1::LogitBias& entry : proto.logit_bias()) {
    sampling.logit_bias.emplace_back(entry.token(), entry.bias());
  }
  return absl::OkStatus();
}

absl::Status ReadStopping(const v1::Stopping& proto, Request& request) {
  RETURN_IF_ERROR(AtMost("stopping.stop", proto.stop_size(), kMaxStopStrings));
  RETURN_IF_ERROR(AtMost("stopping.stop_token_ids", proto.stop_token_ids_size(), kMaxStopTokens));
  if (proto.has_max_output_tokens()) {
    if (proto.max_output_tokens() < 1) {
      return Invalid(
          fmt::format("stopping.max_output_tokens: {} is below 1; leave it out for as "
                      "many as the served length allows",
                      proto.max_output_tokens()));
    }
    request.max_output_tokens = proto.max_output_tokens();
  }
  request.min_output_tokens = proto.min_output_tokens();
  for (int i = 0; i < proto.stop_size(); ++i) {
    const std::string& stop = proto.stop(i);
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return Invalid(fmt::format("stopping.stop[{}]: {} bytes are outside [1, {}]", i, stop.size(),
                                 kMaxStopBytes));
    }
    request.stop.push_back(stop);
  }
  request.stop_token_ids.assign(proto.stop_token_ids().begin(), proto.stop_token_ids().end());
  request.ignore_eos = proto.ignore_eos();
  return absl::OkStatus();
}

absl::Status ReadLogprobs(const v1::Logprobs& proto, Request& request) {
  RETURN_IF_ERROR(InRange("logprobs.top", proto.top(), 0, kMaxTop));
  if (proto.top() > 0 && !proto.output() && !proto.prompt()) {
    return Invalid(
        fmt::format("logprobs.top: {} without logprobs.output or logprobs.prompt", proto.top()));
  }
  if (proto.output()) request.logprobs = proto.top();
  if (proto.prompt()) request.prompt_logprobs = proto.top();
  return absl::OkStatus();
}

template <class To, class From>
absl::Status ReadEnum(const char* field, From from, From last, std::optional<To>& to) {
  const int value = static_cast<int>(from);
  RETURN_IF_ERROR(InRange(field, value, 0, last));
  if (value > 0) to = static_cast<To>(value - 1);
  return absl::OkStatus();
}

// The engine's enumerations have the order of the proto's, which begin with UNSPECIFIED.
static_assert(static_cast<int>(AttentionMode::kInfiniteHip) + 1 == v1::ATTENTION_MODE_INFINITE_HIP);
static_assert(static_cast<int>(SelectorName::kWindow) + 1 == v1::ATTENTION_SELECTOR_WINDOW);
static_assert(static_cast<int>(PositionRule::kClipped) + 1 == v1::ATTENTION_POSITIONS_CLIPPED);

absl::Status ReadAttention(const v1::Attention& proto, Request& request) {
  AttentionOverrides& overrides = request.attention;
  if (proto.has_fidelity_every()) request.fidelity_every = proto.fidelity_every();
  RETURN_IF_ERROR(
      ReadEnum("attention.mode", proto.mode(), v1::ATTENTION_MODE_INFINITE_HIP, overrides.mode));
  RETURN_IF_ERROR(ReadEnum("attention.selector", proto.selector(), v1::ATTENTION_SELECTOR_WINDOW,
                           overrides.selector));
  RETURN_IF_ERROR(ReadEnum("attention.positions", proto.positions(),
                           v1::ATTENTION_POSITIONS_CLIPPED, overrides.positions));
  if (!proto.preset().empty()) overrides.preset = proto.preset();
  if (proto.has_budget()) overrides.budget = proto.budget();
  if (proto.has_sinks()) overrides.num_sinks = proto.sinks();
  if (proto.has_window()) overrides.window = proto.window();
  if (proto.has_dilation()) overrides.dilation = proto.dilation();
  if (proto.has_rerank()) overrides.rerank = proto.rerank();
  if (proto.has_sieve()) overrides.sieve = proto.sieve();
  overrides.refresh.assign(proto.refresh().begin(), proto.refresh().end());
  return absl::OkStatus();
}

// Names of Request's fields in GenerateRequest.
constexpr std::pair<std::string_view, std::string_view> kProtoFields[] = {
    {"temperature", "sampling.temperature"},
    {"top_k", "sampling.top_k"},
    {"top_p", "sampling.top_p"},
    {"min_p", "sampling.min_p"},
    {"repetition_penalty", "sampling.repetition_penalty"},
    {"presence_penalty", "sampling.presence_penalty"},
    {"frequency_penalty", "sampling.frequency_penalty"},
    {"logit_bias", "sampling.logit_bias"},
    {"max_output_tokens", "stopping.max_output_tokens"},
    {"min_output_tokens", "stopping.min_output_tokens"},
    {"stop", "stopping.stop"},
    {"stop_token_ids", "stopping.stop_token_ids"},
    {"num_samples", "num_samples"},
};

std::string_view InputField(const v1::GenerateRequest& proto) {
  if (proto.has_text()) return "text";
  return proto.has_chat() ? "chat" : "token_ids.ids";
}

}  // namespace

absl::Status CheckModel(const std::string& name, const ServedModel& served) {
  if (name.empty() || name == served.name) return absl::OkStatus();
  return absl::NotFoundError(
      fmt::format("model: '{}' is not served here, '{}' is", name, served.name));
}

absl::StatusOr<std::vector<int32_t>> TextTokens(const std::string& text, bool add_special,
                                                const ServedModel& served) {
  auto tokens = served.engine->tokenizer().Encode(text, {.add_special = add_special});
  if (tokens.ok()) return tokens;
  return absl::Status(tokens.status().code(),
                      fmt::format("text: {}", std::string(tokens.status().message())));
}

absl::StatusOr<std::vector<int32_t>> ChatTokens(const v1::Chat& chat, const ServedModel& served) {
  const Engine& engine = *served.engine;
  if (engine.chat_template() == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("chat: the model '{}' has no chat template", served.name));
  }
  if (chat.messages().empty()) return Invalid("chat.messages: 0 messages, at least 1 is needed");
  auto messages = nlohmann::ordered_json::array();
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    if (message.role().empty()) return Invalid(fmt::format("chat.messages[{}].role: is empty", i));
    messages.push_back({{"role", message.role()}, {"content", message.content()}});
  }
  const nlohmann::ordered_json context = {
      {"messages", std::move(messages)},
      {"add_generation_prompt", !chat.has_add_generation_prompt() || chat.add_generation_prompt()},
      {"bos_token", TokenText(engine.config().bos_ids, engine.tokenizer())},
      {"eos_token", TokenText(engine.config().eos_ids, engine.tokenizer())}};
  const auto text = engine.chat_template()->Render(context);
  if (!text.ok()) return Invalid(fmt::format("chat: {}", std::string(text.status().message())));
  // Templates write the special tokens out, the beginning of the sequence included.
  return engine.tokenizer().Encode(*text, {.add_special = false, .parse_special = true});
}

absl::StatusOr<Request> ToRequest(const v1::GenerateRequest& proto, const ServedModel& served) {
  RETURN_IF_ERROR(CheckModel(proto.model(), served));
  Request request;
  RETURN_IF_ERROR(ReadSampling(proto.sampling(), request.sampling));
  RETURN_IF_ERROR(ReadStopping(proto.stopping(), request));
  RETURN_IF_ERROR(ReadLogprobs(proto.logprobs(), request));
  RETURN_IF_ERROR(ReadAttention(proto.attention(), request));
  RETURN_IF_ERROR(InRange("priority", proto.priority(), -kMaxPriority, kMaxPriority));
  request.priority = proto.priority();
  if (proto.has_num_samples()) request.num_samples = proto.num_samples();
  if (proto.has_skip_special_tokens()) request.skip_special_tokens = proto.skip_special_tokens();
  ASSIGN_OR_RETURN(request.prompt, PromptTokens(proto, served));
  return request;
}

absl::Status NameProtoField(const absl::Status& status, const v1::GenerateRequest& proto) {
  const std::string message(status.message());
  const size_t colon = message.find(": ");
  if (status.code() != absl::StatusCode::kInvalidArgument || colon == std::string::npos) {
    return status;
  }
  const std::string_view name = std::string_view(message).substr(0, colon);
  std::string_view field = name == "prompt" ? InputField(proto) : name;
  for (const auto& [engine_name, proto_name] : kProtoFields) {
    if (name == engine_name) field = proto_name;
  }
  return Invalid(fmt::format("{}{}", field, message.substr(colon)));
}

}  // namespace everlong
