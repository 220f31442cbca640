// One output being generated: its session, how its next token is sampled, and what ends it.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/time/time.h"
#include "engine/attention_plan.h"
#include "engine/model_config.h"
#include "engine/output_text.h"
#include "engine/request.h"
#include "engine/session.h"
#include "kernels/args.h"

namespace everlong {

// The adjustments of one sequence's logits, kept up to date token by token.
class LogitAdjusts {
 public:
  LogitAdjusts(const Request& request, const ModelConfig& config);

  void OnOutput(int32_t token);

  // Appends this step's adjustments. `forbid_end`: the tokens that end an output get -infinity.
  void AppendTo(std::vector<TokenAdjust>& out, bool forbid_end) const;

 private:
  TokenAdjust& Slot(int32_t token);

  bool track_context_;  // some penalty is active
  std::vector<TokenAdjust> adjusts_;
  std::unordered_map<int32_t, size_t> slots_;
  std::vector<int32_t> end_tokens_;
};

// Engine thread only. Points into the request it belongs to, which outlives it.
struct Sequence {
  Sequence(const Request* request, RequestId request_id, const ModelConfig& config,
           const Tokenizer* tokenizer, const AttentionPolicy* policy);
  // Another sample of the same prompt; the session is moved in by the caller.
  Sequence(const Sequence& first, int32_t sample, Session session);

  const Request* request;
  RequestId request_id;
  const ModelConfig* config;
  const Tokenizer* tokenizer;
  const AttentionPolicy* policy;
  bool sparse;  // some of its queries may be
  int32_t sample = 0;
  uint64_t seed;

  Session session;
  int64_t num_prompt;
  bool forked = false;   // its siblings exist, or it has none
  bool running = false;  // admitted by the scheduler
  int32_t slot = -1;     // of its selections, while running
  int64_t num_scored =
      1;  // leading prompt tokens whose log probabilities need no computing any more
  OutputText text;
  LogitAdjusts adjusts;
  absl::Time last_output = absl::InfinitePast();

  int64_t num_output() const { return static_cast<int64_t>(session.tokens.size()) - num_prompt; }

  // Tokens it may take in the next step, before it has to fork or sample: the rest of the prompt,
  // then one. A preempted output comes again in small groups; where attention is sparse token by
  // token, since a selection builds on the one before.
  int64_t num_pending() const;
  SequencePlan plan() const {
    return {.policy = policy, .decode_begin = num_prompt - 1, .slot = slot};
  }
  // Whether attention at `position` is compared with attention over everything: at one of each
  // Request::fidelity_every decoded tokens. Each time it is one further on, so that selections of
  // all ages are met.
  bool Compares(int64_t position) const;
  bool EndsOutput(int32_t token) const;
  SampleParams NextSample(std::vector<TokenAdjust>& adjusts_out) const;
};

}  // namespace everlong
