#include "engine/delivery.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

namespace everlong {
namespace {

PositionLogprobs ToLogprobs(const Batch::Result& result) {
  return {.chosen = result.chosen, .top = {result.top, result.top + result.num_top}};
}

void CountAttention(const StepUse& use, AttentionUse& total, EngineStats& stats) {
  ++total.decode_steps;
  total.attended_ratio +=
      (use.attended_ratio - total.attended_ratio) / static_cast<double>(total.decode_steps);
  for (int stage = use.first_stage; stage < use.num_stages; ++stage) {
    ++total.refreshes[stage];
    ++stats.stage_refreshes[stage];
  }
}

void CountFidelity(std::span<const LayerFidelity> layers, AttentionUse& total, EngineStats& stats) {
  const auto count = static_cast<double>(++total.compared_tokens);
  total.fidelity.resize(layers.size(), {.recall = 0.0});
  for (size_t i = 0; i < layers.size(); ++i) {
    LayerFidelity& mean = total.fidelity[i];
    mean.recall += (layers[i].recall - mean.recall) / count;
    mean.error += (layers[i].error - mean.error) / count;
  }
  stats.ObserveFidelity(layers);
}

void CountToken(ActiveRequest& active, Sequence& sequence, absl::Time now, EngineStats& stats) {
  ++active.output_tokens;
  ++stats.output_tokens;
  if (!active.has_output()) {
    active.first_token = now;
    stats.time_to_first_token_seconds.Observe(absl::ToDoubleSeconds(now - active.submitted));
    stats.request_prefill_time_seconds.Observe(absl::ToDoubleSeconds(now - active.scheduled));
  } else if (sequence.last_output != absl::InfinitePast()) {
    stats.inter_token_latency_seconds.Observe(absl::ToDoubleSeconds(now - sequence.last_output));
  }
  sequence.last_output = now;
}

void DeliverPrompt(const Batch& batch, const Batch::Slice& slice, ActiveRequest& active,
                   EngineStats& stats) {
  Sequence& sequence = *slice.sequence;
  PrefillEvent event = {.done_tokens = std::min(sequence.session.stored, sequence.num_prompt),
                        .total_tokens = sequence.num_prompt};
  for (int32_t score = slice.first_score; score < slice.end_score; ++score) {
    event.prompt_logprobs.push_back(ToLogprobs(batch.result(score)));
    ++sequence.num_scored;
  }
  if (event.done_tokens <= active.reported_prefill) return;
  stats.prompt_tokens += event.done_tokens - active.reported_prefill;
  active.reported_prefill = event.done_tokens;
  active.sink->OnEvent(std::move(event));
}

// True: the output has ended.
bool DeliverToken(const Batch::Result& result, ActiveRequest& active, Sequence& sequence) {
  const int32_t token = result.chosen.token;
  sequence.session.tokens.push_back(token);
  sequence.adjusts.OnOutput(token);

  const bool ends = sequence.EndsOutput(token);
  const bool full = sequence.num_output() >= active.request.max_output_tokens;
  OutputEvent event = {.sample = sequence.sample, .token_ids = {token}};
  if (active.request.logprobs >= 0) event.logprobs.push_back(ToLogprobs(result));
  if (!ends && token < sequence.tokenizer->vocab_size()) event.text = sequence.text.Append(token);
  if ((ends || full) && sequence.text.matched_stop() < 0) event.text += sequence.text.Finish();
  const int stop = sequence.text.matched_stop();
  active.sink->OnEvent(std::move(event));
  if (stop < 0 && !ends && !full) return false;

  SampleFinishedEvent end = {.sample = sequence.sample, .reason = FinishReason::kLength};
  if (stop >= 0) {
    end.reason = FinishReason::kStopString;
    end.stop_string = active.request.stop[stop];
  } else if (ends) {
    end.reason = FinishReason::kStopToken;
    end.stop_token = token;
  }
  active.last_reason = end.reason;
  active.sink->OnEvent(std::move(end));
  return true;
}

Timings TimingsOf(const ActiveRequest& active, absl::Time now) {
  Timings timings;
  timings.queue = (active.started() ? active.scheduled : now) - active.submitted;
  if (active.started()) {
    timings.prefill = (active.has_output() ? active.first_token : now) - active.scheduled;
  }
  if (active.has_output()) {
    timings.first_token = active.first_token - active.submitted;
    timings.decode = now - active.first_token;
  }
  return timings;
}

}  // namespace

bool Deliver(const Batch& batch, const Batch::Slice& slice, absl::Time now, ActiveRequest& active,
             EngineStats& stats) {
  Sequence& sequence = *slice.sequence;
  if (slice.use) CountAttention(*slice.use, active.attention, stats);
  if (slice.compared >= 0) {
    CountFidelity(batch.fidelity().layers(slice.compared), active.attention, stats);
  }
  sequence.session.stored += slice.num_tokens;
  DeliverPrompt(batch, slice, active, stats);
  if (slice.sample < 0) return false;
  CountToken(active, sequence, now, stats);
  return DeliverToken(batch.result(slice.sample), active, sequence);
}

FinishedEvent Finish(const ActiveRequest& active, const absl::Status& status, absl::Time now,
                     EngineStats& stats) {
  FinishedEvent event = {
      .status = status,
      .usage = {.prompt_tokens = static_cast<int64_t>(active.request.prompt.size()),
                .output_tokens = active.output_tokens},
      .timings = TimingsOf(active, now),
      .attention = active.attention};
  if (!status.ok()) {
    ++stats.failures[status.code()];
    return event;
  }
  ++stats.finished[static_cast<size_t>(active.last_reason)];
  stats.e2e_request_latency_seconds.Observe(absl::ToDoubleSeconds(now - active.submitted));
  stats.request_decode_time_seconds.Observe(absl::ToDoubleSeconds(event.timings.decode));
  stats.attended_ratio.Observe(active.attention.attended_ratio);
  return event;
}

}  // namespace everlong
