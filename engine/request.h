// What the engine is asked and what it answers. Plain data; no knowledge of the network.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/attention_policy.h"
#include "engine/fidelity.h"
#include "engine/model_config.h"

namespace everlong {

using RequestId = uint64_t;

inline constexpr int32_t kMaxSamples = 16;
inline constexpr int32_t kMaxTop = 20;  // most likely tokens reported per position

struct Sampling {
  float temperature = 1.0f;         // >= 0; 0: greedy
  int32_t top_k = 0;                // >= 0; 0: all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1)
  float repetition_penalty = 1.0f;  // (0, 10]
  float presence_penalty = 0.0f;    // [-2, 2]
  float frequency_penalty = 0.0f;   // [-2, 2]
  std::optional<uint64_t> seed;     // none: drawn for the request
  std::vector<std::pair<int32_t, float>>
      logit_bias;  // (token, bias); [-100, 100]; each token at most once
};

struct Request {
  std::vector<int32_t> prompt;  // 1 .. max_context - 1 tokens
  Sampling sampling;
  int64_t max_output_tokens = 0;  // 0: up to the context limit
  int64_t min_output_tokens = 0;
  std::vector<std::string> stop;        // never part of the output
  std::vector<int32_t> stop_token_ids;  // part of the token ids, not of the text
  bool ignore_eos = false;
  bool skip_special_tokens = true;  // in the text
  int32_t num_samples = 1;          // outputs that share the prompt
  int32_t logprobs = -1;            // -1: none; n: the chosen token's and the n most likely
  int32_t prompt_logprobs = -1;     // the same for prompt tokens 1 ..
  int32_t priority = 0;             // higher runs first
  AttentionOverrides attention;
  // Of so many output tokens, one that is sparse is compared with dense attention; 0: none is.
  // None: as EngineOptions has it.
  std::optional<int32_t> fidelity_every;
  absl::Time deadline = absl::InfiniteFuture();
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // most likely first
};

struct AcceptedEvent {
  RequestId id = 0;
  int64_t queue_position = 0;  // requests ahead
  std::string warning;         // what PositionWarning says of a request that may be sparse
};

struct PrefillEvent {
  int64_t done_tokens = 0;
  int64_t total_tokens = 0;
  int64_t cached_tokens = 0;
  std::vector<PositionLogprobs> prompt_logprobs;  // of the positions since the last such event
};

struct OutputEvent {
  int32_t sample = 0;
  std::string text;  // may be empty while a sequence or a stop string is undecided
  absl::InlinedVector<int32_t, 1> token_ids;
  std::vector<PositionLogprobs> logprobs;  // one per token id where asked for
};

enum class FinishReason { kStopToken, kStopString, kLength };

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
};

struct Timings {
  absl::Duration queue;        // submitted to first scheduled
  absl::Duration prefill;      // first scheduled to first output token
  absl::Duration first_token;  // submitted to first output token
  absl::Duration decode;       // first output token to the end
};

// Of one sample. The last one to finish is followed by the terminal FinishedEvent.
struct SampleFinishedEvent {
  int32_t sample = 0;
  FinishReason reason = FinishReason::kLength;
  int32_t stop_token = -1;  // the token that ended it, or
  std::string stop_string;  // the string that did
};

// What a request's attention read while its outputs were decoded.
struct AttentionUse {
  int64_t decode_steps = 0;                     // samples count each
  double attended_ratio = 1.0;                  // tokens read over tokens there, mean
  std::array<int64_t, kMaxStages> refreshes{};  // of each stage, in the first sparse layer
  int64_t selected_blocks = 0;          // by refreshes but the first, all layers and KV heads
  int64_t reused_blocks = 0;            // of these, blocks that had been selected before
  int64_t compared_tokens = 0;          // output tokens that were compared with dense attention
  std::vector<LayerFidelity> fidelity;  // [layers], means over these; empty where there were none
};

// The one terminal event. `status` is OK unless the request failed: CANCELLED, DEADLINE_EXCEEDED,
// RESOURCE_EXHAUSTED, UNAVAILABLE, INTERNAL.
struct FinishedEvent {
  absl::Status status;
  Usage usage;  // output_tokens: all samples
  Timings timings;
  AttentionUse attention;
};

using Event =
    std::variant<AcceptedEvent, PrefillEvent, OutputEvent, SampleFinishedEvent, FinishedEvent>;

// INVALID_ARGUMENT naming field, value and limit where a request breaks what is written above.
absl::Status ValidateRequest(const Request& request, const ModelConfig& config,
                             int64_t max_context);

// Receives a request's events, from the engine thread only; must not block.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void OnEvent(Event event) = 0;
  // True while the receiver is so far behind that generation should pause. Polled each step.
  virtual bool Backlogged() const { return false; }
};

}  // namespace everlong
