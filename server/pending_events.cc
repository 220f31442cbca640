#include "server/pending_events.h"

#include <algorithm>
#include <type_traits>
#include <variant>

namespace everlong {
namespace {

constexpr absl::Duration kPrefillInterval = absl::Seconds(1);
// Messages stay well below the 4 MiB that gRPC clients accept by default.
constexpr size_t kMaxMergedBytes = 1 << 20;
constexpr size_t kMaxPositions = 2048;  // with log probabilities, of one message

void Fill(const TokenLogprob& from, v1::TokenLogprob* to) {
  to->set_token(from.token);
  to->set_logprob(from.logprob);
}

void Fill(const PositionLogprobs& from, v1::PositionLogprobs* to) {
  Fill(from.chosen, to->mutable_chosen());
  for (const TokenLogprob& token : from.top) Fill(token, to->add_top());
}

void Fill(absl::Duration from, google::protobuf::Duration* to) {
  to->set_seconds(absl::IDivDuration(from, absl::Seconds(1), &from));
  to->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(from)));
}

void Fill(const AttentionUse& from, v1::AttentionUse* to) {
  to->set_attended_ratio(from.attended_ratio);
  const auto used = std::find(from.refreshes.begin(), from.refreshes.end(), 0);
  to->mutable_stage_refreshes()->Add(from.refreshes.begin(), used);
  if (from.selected_blocks > 0) {
    to->set_hit_ratio(static_cast<double>(from.reused_blocks) /
                      static_cast<double>(from.selected_blocks));
  }
  if (from.compared_tokens == 0) return;
  to->mutable_fidelity()->set_tokens(from.compared_tokens);
  for (const LayerFidelity& layer : from.fidelity) {
    v1::LayerFidelity* added = to->mutable_fidelity()->add_layers();
    added->set_recall(layer.recall);
    added->set_error(layer.error);
  }
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::GenerateEvent ToProto(OutputEvent& from) {
  v1::GenerateEvent event;
  v1::Output* to = event.mutable_output();
  to->set_sample(from.sample);
  to->set_text(std::move(from.text));
  to->mutable_token_ids()->Add(from.token_ids.begin(), from.token_ids.end());
  for (const PositionLogprobs& position : from.logprobs) Fill(position, to->add_logprobs());
  return event;
}

v1::GenerateEvent ToProto(SampleFinishedEvent& from) {
  v1::GenerateEvent event;
  v1::SampleFinished* to = event.mutable_sample_finished();
  to->set_sample(from.sample);
  to->set_reason(ToProto(from.reason));
  if (from.reason == FinishReason::kStopToken) to->set_stop_token(from.stop_token);
  if (from.reason == FinishReason::kStopString) to->set_stop_string(std::move(from.stop_string));
  return event;
}

v1::GenerateEvent ToProto(const AcceptedEvent& from, const PendingEvents::Subject& subject) {
  v1::GenerateEvent event;
  v1::Accepted* to = event.mutable_accepted();
  to->set_request_id(from.id);
  to->set_model(subject.model);
  to->set_queue_position(from.queue_position);
  to->set_prompt_tokens(subject.prompt_tokens);
  to->set_warning(from.warning);
  return event;
}

v1::GenerateEvent ToProto(const FinishedEvent& from, const PendingEvents::Subject& subject) {
  v1::GenerateEvent event;
  v1::Usage* usage = event.mutable_finished()->mutable_usage();
  usage->set_prompt_tokens(from.usage.prompt_tokens);
  usage->set_cached_tokens(from.usage.cached_tokens);
  usage->set_output_tokens(from.usage.output_tokens);
  v1::Timings* timings = event.mutable_finished()->mutable_timings();
  Fill(from.timings.queue, timings->mutable_queue());
  Fill(from.timings.prefill, timings->mutable_prefill());
  Fill(from.timings.first_token, timings->mutable_first_token());
  Fill(from.timings.decode, timings->mutable_decode());
  if (from.attention.decode_steps > 0) {
    Fill(from.attention, event.mutable_finished()->mutable_attention());
  }
  // Samples are generated side by side: each has its share of the tokens after the first ones.
  const int64_t later_tokens = from.usage.output_tokens - subject.num_samples;
  if (later_tokens > 0) {
    Fill(from.timings.decode * subject.num_samples / later_tokens, timings->mutable_per_token());
  }
  return event;
}

// Whether two events tell the same story, the second its continuation.
bool Continues(const v1::GenerateEvent& first, const v1::GenerateEvent& second) {
  if (first.has_prefill()) return second.has_prefill();
  return first.has_output() && second.has_output() &&
         first.output().sample() == second.output().sample();
}

// Numbers are replaced, lists and text grow.
void Append(v1::GenerateEvent& to, v1::GenerateEvent& from) {
  if (to.has_output()) {
    to.mutable_output()->mutable_text()->append(from.output().text());
    from.mutable_output()->clear_text();
  }
  to.MergeFrom(from);
}

}  // namespace

void PendingEvents::Add(Event event) {
  std::visit(
      [this](auto& e) {
        using E = std::decay_t<decltype(e)>;
        if constexpr (std::is_same_v<E, PrefillEvent>) {
          AddPrefill(e);
        } else if constexpr (std::is_same_v<E, AcceptedEvent> || std::is_same_v<E, FinishedEvent>) {
          Push(ToProto(e, subject_));
        } else {
          Push(ToProto(e));
        }
      },
      event);
}

void PendingEvents::AddPrefill(const PrefillEvent& from) {
  size_t position = 0;
  do {
    v1::GenerateEvent event;
    v1::Prefill* to = event.mutable_prefill();
    to->set_done_tokens(from.done_tokens);
    to->set_total_tokens(from.total_tokens);
    to->set_cached_tokens(from.cached_tokens);
    const size_t end = std::min(from.prompt_logprobs.size(), position + kMaxPositions);
    for (; position < end; ++position) {
      Fill(from.prompt_logprobs[position], to->add_prompt_logprobs());
    }
    Push(std::move(event));
  } while (position < from.prompt_logprobs.size());
}

void PendingEvents::Push(v1::GenerateEvent event) {
  const size_t bytes = event.ByteSizeLong();
  bytes_ += bytes;
  const auto last = std::find_if(entries_.rbegin(), entries_.rend(),
                                 [&](const Entry& entry) { return Continues(entry.event, event); });
  if (last == entries_.rend() || last->bytes + bytes > kMaxMergedBytes) {
    entries_.push_back({std::move(event), bytes});
  } else {
    Append(last->event, event);
    last->bytes += bytes;
  }
}

bool PendingEvents::MayWait(const Entry& entry, absl::Time now) const {
  if (!entry.event.has_prefill() || entries_.size() > 1) return false;
  const v1::Prefill& prefill = entry.event.prefill();
  return prefill.prompt_logprobs().empty() && prefill.done_tokens() < prefill.total_tokens() &&
         now < last_prefill_ + kPrefillInterval;
}

std::optional<v1::GenerateEvent> PendingEvents::Take(absl::Time now) {
  if (entries_.empty() || MayWait(entries_.front(), now)) return std::nullopt;
  v1::GenerateEvent event = std::move(entries_.front().event);
  bytes_ -= entries_.front().bytes;
  entries_.pop_front();
  if (event.has_prefill()) last_prefill_ = now;
  return event;
}

}  // namespace everlong
