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

// NaN fails every comparison, so it is refused too.
absl::Status InRange(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Invalid(fmt::format("{}: {} is outside [{}, {}]", field, value, low, high));
}

absl::Status CheckToken(const char* field, int64_t token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return absl::OkStatus();
  return Invalid(
      fmt::format("{}: token {} is outside the vocabulary [0, {})", field, token, vocab_size));
}

absl::Status CheckSampling(const Sampling& s, int64_t vocab_size) {
  RETURN_IF_ERROR(InRange("temperature", s.temperature, 0.0, std::numeric_limits<float>::max()));
  RETURN_IF_ERROR(InRange("top_k", s.top_k, 0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(InRange("top_p", s.top_p, std::numeric_limits<float>::min(), 1.0));
  RETURN_IF_ERROR(InRange("min_p", s.min_p, 0.0, std::nextafter(1.0f, 0.0f)));
  RETURN_IF_ERROR(
      InRange("repetition_penalty", s.repetition_penalty, std::numeric_limits<float>::min(), 10.0));
  RETURN_IF_ERROR(InRange("presence_penalty", s.presence_penalty, -2.0, 2.0));
  RETURN_IF_ERROR(InRange("frequency_penalty", s.frequency_penalty, -2.0, 2.0));
  std::unordered_set<int32_t> biased;
  for (const auto& [token, bias] : s.logit_bias) {
    RETURN_IF_ERROR(CheckToken("logit_bias", token, vocab_size));
    RETURN_IF_ERROR(InRange("logit_bias", bias, -100.0, 100.0));
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
  RETURN_IF_ERROR(InRange("max_output_tokens", static_cast<double>(r.max_output_tokens), 0,
                          static_cast<double>(std::numeric_limits<int64_t>::max())));
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
  return InRange("prompt_logprobs", request.prompt_logprobs, -1, kMaxTop);
}

}  // namespace everlong
