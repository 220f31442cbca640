// A request from Submit to its FinishedEvent: what was asked, how far it has come, what it cost.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "engine/attention_policy.h"
#include "engine/request.h"
#include "engine/sequence.h"

namespace everlong {

// Made by the thread that submits; the engine's thread only, once the inbox has it.
struct ActiveRequest {
  RequestId id = 0;  // of the inbox
  Request request;   // defaults resolved
  std::shared_ptr<EventSink> sink;
  std::shared_ptr<const AttentionPolicy> policy;
  absl::Time submitted;
  absl::Time scheduled = absl::InfinitePast();
  absl::Time first_token = absl::InfinitePast();

  // Outputs that have not ended, in order. Until the prompt is stored one stands for all.
  std::vector<std::unique_ptr<Sequence>> samples;
  FinishReason last_reason = FinishReason::kLength;  // of the sample that ended last
  int64_t reported_prefill = 0;                      // tokens
  int64_t output_tokens = 0;
  AttentionUse attention;

  bool started() const { return scheduled != absl::InfinitePast(); }
  bool has_output() const { return first_token != absl::InfinitePast(); }
};

}  // namespace everlong
