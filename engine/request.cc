#include "engine/request.h"

#include <cmath>
#include <limits>
#include <unordered_set>

#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

absl::Status Invalid(std::string message) {
  return absl::InvalidArgumentError(message);
}

absl::Status InRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid(fmt::format("{}: {} is outside [{}, {}]", field, value, low, high));
}

// NaN fails every comparison, so it is refused too.
absl::Status Require(bool in_range, const char* field, float value, const char* range) {
  if (in_range) return absl::OkStatus();
  return Invalid(fmt::format("{}: {} is outside {}", field, value, range));
}

absl::Status CheckToken(const char* field, int64_t token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return absl::OkStatus();
  return Invalid(
      fmt::format("{}: token {} is outside the vocabulary [0, {})", field, token, vocab_size));
}

absl::Status CheckSampling(const Sampling& s, int64_t vocab_size) {
  RETURN_IF_ERROR(Require(s.temperature >= 0 && std::isfinite(s.temperature), "temperature",
                          s.temperature, "[0, infinity)"));
  RETURN_IF_ERROR(InRange("top_k", s.top_k, 0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(Require(s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "(0, 1]"));
  RETURN_IF_ERROR(Require(s.min_p >= 0 && s.min_p < 1, "min_p", s.min_p, "[0, 1)"));
  RETURN_IF_ERROR(Require(s.repetition_penalty > 0 && s.repetition_penalty <= 10,
                          "repetition_penalty", s.repetition_penalty, "(0, 10]"));
  RETURN_IF_ERROR(Require(std::abs(s.presence_penalty) <= 2, "presence_penalty", s.presence_penalty,
                          "[-2, 2]"));
  RETURN_IF_ERROR(Require(std::abs(s.frequency_penalty) <= 2, "frequency_penalty",
                          s.frequency_penalty, "[-2, 2]"));
  std::unordered_set<int32_t> biased;
  for (const auto& [token, bias] : s.logit_bias) {
    RETURN_IF_ERROR(CheckToken("logit_bias", token, vocab_size));
    RETURN_IF_ERROR(Require(std::abs(bias) <= 100, "logit_bias", bias, "[-100, 100]"));
    if (!biased.insert(token).second) {
      return Invalid(fmt::format("logit_bias: token {} is given twice", token));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const Request& r, int64_t max_context) {
  const auto num_prompt = static_cast<int64_t>(r.prompt.size());
  if (num_prompt == 0) return Invalid("prompt: 0 tokens, at least 1 is needed");
  if (num_prompt >= max_context) {
    return Invalid(
        fmt::format("prompt: {} tokens leave no room for output in the served length of {} tokens",
                    num_prompt, max_context));
  }
  RETURN_IF_ERROR(
      InRange("max_output_tokens", r.max_output_tokens, 0, std::numeric_limits<int64_t>::max()));
  if (r.max_output_tokens > max_context - num_prompt) {
    return Invalid(fmt::format(
        "max_output_tokens: {} after a prompt of {} tokens pass the served length of {} tokens",
        r.max_output_tokens, num_prompt, max_context));
  }
  const int64_t limit = r.max_output_tokens > 0 ? r.max_output_tokens : max_context - num_prompt;
  if (r.min_output_tokens < 0 || r.min_output_tokens > limit) {
    return Invalid(
        fmt::format("min_output_tokens: {} is outside [0, {}]", r.min_output_tokens, limit));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateRequest(const Request& request, const ModelConfig& config,
                             int64_t max_context) {
  RETURN_IF_ERROR(CheckLengths(request, max_context));
  for (const int32_t token : request.prompt) {
    RETURN_IF_ERROR(CheckToken("prompt", token, config.vocab_size));
  }
  for (const int32_t token : request.stop_token_ids) {
    RETURN_IF_ERROR(CheckToken("stop_token_ids", token, config.vocab_size));
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return Invalid("stop: an empty string would end every output");
  }
  RETURN_IF_ERROR(CheckSampling(request.sampling, config.vocab_size));
  RETURN_IF_ERROR(InRange("num_samples", request.num_samples, 1, kMaxSamples));
  RETURN_IF_ERROR(InRange("logprobs", request.logprobs, -1, kMaxTop));
  RETURN_IF_ERROR(InRange("attention.fidelity_every", request.fidelity_every.value_or(0), 0,
                          std::numeric_limits<int32_t>::max()));
  return InRange("prompt_logprobs", request.prompt_logprobs, -1, kMaxTop);
}

}  // namespace everlong
