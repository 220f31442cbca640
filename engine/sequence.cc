#include "engine/sequence.h"

#include <algorithm>
#include <limits>

namespace everlong {
namespace {

// Sample i of a request draws from a stream of its own; sample 0 uses the seed itself.
uint64_t SampleSeed(uint64_t seed, int32_t sample) {
  return seed + static_cast<uint64_t>(sample) * 0x9E3779B97F4A7C15u;
}

// Of an output that is computed again, in a step: they share the reading of the weights, but each
// reads the context.
constexpr int64_t kReplayTokens = 16;

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

LogitAdjusts::LogitAdjusts(const Request& request, const ModelConfig& config)
    : end_tokens_(request.stop_token_ids) {
  const Sampling& s = request.sampling;
  track_context_ =
      s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
  for (const auto& [token, bias] : s.logit_bias) Slot(token).bias = bias;
  if (track_context_) {
    for (const int32_t token : request.prompt) Slot(token).in_context = true;
  }
  if (!request.ignore_eos) {
    end_tokens_.insert(end_tokens_.end(), config.eos_ids.begin(), config.eos_ids.end());
  }
}

TokenAdjust& LogitAdjusts::Slot(int32_t token) {
  const auto [it, added] = slots_.try_emplace(token, adjusts_.size());
  if (added) adjusts_.push_back({.token = token});
  return adjusts_[it->second];
}

void LogitAdjusts::OnOutput(int32_t token) {
  if (!track_context_) return;
  TokenAdjust& slot = Slot(token);
  slot.in_context = true;
  ++slot.output_count;
}

void LogitAdjusts::AppendTo(std::vector<TokenAdjust>& out, bool forbid_end) const {
  const size_t begin = out.size();
  out.insert(out.end(), adjusts_.begin(), adjusts_.end());
  if (!forbid_end) return;
  for (const int32_t token : end_tokens_) {
    const auto it = std::find_if(out.begin() + static_cast<ptrdiff_t>(begin), out.end(),
                                 [token](const TokenAdjust& a) { return a.token == token; });
    TokenAdjust& adjust = it != out.end() ? *it : out.emplace_back(TokenAdjust{.token = token});
    adjust.bias = -std::numeric_limits<float>::infinity();
  }
}

Sequence::Sequence(const Request* request, RequestId request_id, const ModelConfig& config,
                   const Tokenizer* tokenizer, const AttentionPolicy* policy)
    : request(request),
      request_id(request_id),
      config(&config),
      tokenizer(tokenizer),
      policy(policy),
      sparse(MayBeSparse(
          *policy, static_cast<int64_t>(request->prompt.size()) + request->max_output_tokens)),
      seed(*request->sampling.seed),
      session{.tokens = request->prompt},
      num_prompt(static_cast<int64_t>(request->prompt.size())),
      forked(request->num_samples == 1),
      text(tokenizer, request->skip_special_tokens, request->stop),
      adjusts(*request, config) {}

Sequence::Sequence(const Sequence& first, int32_t sample, Session session)
    : request(first.request),
      request_id(first.request_id),
      config(first.config),
      tokenizer(first.tokenizer),
      policy(first.policy),
      sparse(first.sparse),
      sample(sample),
      seed(SampleSeed(first.seed, sample)),
      session(std::move(session)),
      num_prompt(first.num_prompt),
      forked(true),
      num_scored(first.num_prompt),
      text(first.tokenizer, first.request->skip_special_tokens, first.request->stop),
      adjusts(first.adjusts) {}

int64_t Sequence::num_pending() const {
  // Samples part before the last prompt token, so that each gets logits of its own.
  if (!forked) return session.num_pending() - 1;
  if (session.stored < num_prompt) return num_prompt - session.stored;
  return sparse ? 1 : std::min(session.num_pending(), kReplayTokens);
}

bool Sequence::Compares(int64_t position) const {
  const int32_t every = request->fidelity_every.value_or(0);
  const int64_t step = position - plan().decode_begin;
  return every > 0 && step >= 0 && step % every == step / every % every;
}

bool Sequence::EndsOutput(int32_t token) const {
  return Contains(request->stop_token_ids, token) ||
         (!request->ignore_eos && Contains(config->eos_ids, token));
}

SampleParams Sequence::NextSample(std::vector<TokenAdjust>& adjusts_out) const {
  const Sampling& s = request->sampling;
  SampleParams params = {.temperature = s.temperature,
                         .top_p = s.top_p,
                         .min_p = s.min_p,
                         .repetition_penalty = s.repetition_penalty,
                         .presence_penalty = s.presence_penalty,
                         .frequency_penalty = s.frequency_penalty,
                         .top_k = s.top_k,
                         .num_top = std::max(request->logprobs, 0),
                         .adjust_begin = static_cast<int32_t>(adjusts_out.size()),
                         .seed = seed,
                         .counter = static_cast<uint64_t>(num_output())};
  adjusts.AppendTo(adjusts_out, num_output() < request->min_output_tokens);
  params.adjust_end = static_cast<int32_t>(adjusts_out.size());
  return params;
}

}  // namespace everlong
