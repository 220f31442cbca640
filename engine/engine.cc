#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "engine/attention_presets.h"
#include "engine/batch.h"
#include "engine/engine_parts.h"
#include "engine/kv/page_pool.h"
#include "engine/model.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

// Full steps that make a measured rate of prefill.
constexpr int kRateSteps = 8;
// How long the thread sleeps when every sequence waits for its reader.
constexpr auto kBacklogPoll = std::chrono::milliseconds(2);

// A request between Submit and its FinishedEvent.
struct ActiveRequest {
  RequestId id;
  Request request;
  std::shared_ptr<EventSink> sink;
  std::shared_ptr<const AttentionPolicy> policy;
  absl::Time submitted;
  absl::Time scheduled = absl::InfinitePast();
  absl::Time first_token = absl::InfinitePast();
  int32_t unfinished_samples = 0;
  FinishReason last_reason = FinishReason::kLength;  // of the sample that finished last
  int64_t reported_prefill = 0;
  int64_t output_tokens = 0;
  AttentionUse attention;

  bool started() const { return scheduled != absl::InfinitePast(); }
};

// Best rank first: priority, then arrival, then sample.
bool RanksBefore(const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) {
  if (a->request->priority != b->request->priority) {
    return a->request->priority > b->request->priority;
  }
  if (a->request_id != b->request_id) return a->request_id < b->request_id;
  return a->sample < b->sample;
}

PositionLogprobs ToLogprobs(const Batch::Result& result) {
  return {.chosen = result.chosen, .top = {result.top, result.top + result.num_top}};
}

double Seconds(absl::Duration d) {
  return absl::ToDoubleSeconds(d);
}

class EngineLoop final : public Engine {
 public:
  explicit EngineLoop(EngineParts parts) : parts_(std::move(parts)), pool_(parts_.num_pages) {
    for (int32_t slot = options().max_running - 1; slot >= 0; --slot) free_slots_.push_back(slot);
    stats_.kv_pages_total = parts_.num_pages;
    stats_.kv_page_bytes = parts_.memory.cache.PageBytes() * config().num_layers;
    published_ = stats_;
  }
  ~EngineLoop() override { Stop(); }

  const ModelConfig& config() const override { return parts_.model->config(); }
  const EngineOptions& options() const override { return parts_.options; }
  const Tokenizer& tokenizer() const override { return *parts_.tokenizer; }
  const ChatTemplate* chat_template() const override { return parts_.chat_template.get(); }
  int64_t kv_bytes_per_token() const override {
    return parts_.memory.cache.PageBytes() * config().num_layers / kPageTokens;
  }

  std::vector<std::string_view> attention_presets() const override {
    if (parts_.memory.selection.slots == 0) return {};
    return PresetNames();
  }

  std::string attention_warning() const override { return PositionWarning(*parts_.policy); }

  absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<EventSink> sink) override;
  void Cancel(RequestId id) override;
  bool Step() override;
  void Start() override;
  void Drain() override;
  bool Idle() const override;
  void Stop() override;
  bool Healthy() const override { return healthy_; }
  EngineStats Stats() const override;

 private:
  void Loop();

  void TakeInbox();
  void Admit(std::unique_ptr<ActiveRequest> active, int64_t requests_ahead);
  void EndExpired();
  void ForkReady();
  const Schedule& Plan();
  void Preempt(const Schedule& plan);
  bool Advance();
  void BuildBatch(const Schedule& plan);
  bool RunBatch();
  void CopyPages();
  void Fail(const absl::Status& status);
  void Deliver();
  void DeliverSlice(const Batch::Slice& slice, absl::Time now);
  void DeliverToken(ActiveRequest& active, Sequence& sequence, const Batch::Result& result,
                    absl::Time now);
  void FinishSample(ActiveRequest& active, Sequence& sequence, SampleFinishedEvent event);
  void FinishRequest(RequestId id, const absl::Status& status);
  void RemoveSequences(RequestId id);
  void Release(Sequence& sequence);
  void CountAttention(ActiveRequest& active, const StepUse& use);
  void CountFidelity(ActiveRequest& active, std::span<const LayerFidelity> layers);
  void ClearReuse(const Sequence& sequence);
  void CountReuse(ActiveRequest& active, const Sequence& sequence);
  void CountStep(absl::Duration duration);
  absl::Status CheckDeadline(const Request& request, absl::Time now) const;
  void Publish();

  EngineParts parts_;
  PagePool pool_;
  std::map<RequestId, std::unique_ptr<ActiveRequest>> requests_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in rank order
  std::vector<std::pair<RequestId, int32_t>> finished_samples_;
  std::vector<SequenceView> views_;  // of sequences_
  Scheduler scheduler_;
  Batch batch_;
  std::vector<PageCopy> copies_;
  std::vector<int32_t> free_slots_;  // of Selection, for running sequences
  // Terminal events go out when what they tell of can be seen in Stats.
  std::vector<std::pair<std::shared_ptr<EventSink>, FinishedEvent>> ended_;
  EngineStats stats_;
  int num_full_steps_ = 0;  // that read prompts
  double best_rate_ = 0.0;  // of these
  std::thread thread_;
  std::atomic<bool> healthy_{true};

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable wake_;
  std::vector<std::unique_ptr<ActiveRequest>> submitted_;
  std::vector<RequestId> cancelled_;
  RequestId next_id_ = 1;
  int64_t num_waiting_ = 0;  // submitted and not yet scheduled
  int64_t num_unfinished_ = 0;
  bool draining_ = false;
  bool stopping_ = false;
  EngineStats published_;  // stats_ at the end of the last step
};

absl::StatusOr<RequestId> EngineLoop::Submit(Request request, std::shared_ptr<EventSink> sink) {
  RETURN_IF_ERROR(ValidateRequest(request, config(), options().max_context));
  ASSIGN_OR_RETURN(std::shared_ptr<const AttentionPolicy> policy,
                   parts_.PolicyFor(request.attention));
  if (!request.sampling.seed) {
    std::random_device device;
    request.sampling.seed = (uint64_t{device()} << 32) | device();
  }
  if (!request.fidelity_every) request.fidelity_every = options().fidelity_every;
  if (request.max_output_tokens == 0) {
    request.max_output_tokens = options().max_context - static_cast<int64_t>(request.prompt.size());
  }
  const absl::Time now = options().clock();
  const std::lock_guard lock(mutex_);
  if (draining_ || stopping_) return absl::UnavailableError("the server is shutting down");
  if (!healthy_) return absl::UnavailableError("the device has failed");
  if (num_waiting_ >= options().max_waiting) {
    return absl::ResourceExhaustedError(
        fmt::format("{} requests are waiting, the limit max_waiting is {}", num_waiting_,
                    options().max_waiting));
  }
  RETURN_IF_ERROR(CheckDeadline(request, now));
  ++num_waiting_;
  ++num_unfinished_;
  const RequestId id = next_id_++;
  submitted_.push_back(std::make_unique<ActiveRequest>(ActiveRequest{.id = id,
                                                                     .request = std::move(request),
                                                                     .sink = std::move(sink),
                                                                     .policy = std::move(policy),
                                                                     .submitted = now}));
  wake_.notify_one();
  return id;
}

// Refuses what cannot be read in time even at the best rate seen. Holds mutex_.
absl::Status EngineLoop::CheckDeadline(const Request& request, absl::Time now) const {
  const double rate = published_.peak_prefill_rate;
  if (rate == 0) return absl::OkStatus();
  const absl::Duration predicted = absl::Seconds(static_cast<double>(request.prompt.size()) / rate);
  if (now + predicted <= request.deadline) return absl::OkStatus();
  return absl::DeadlineExceededError(fmt::format(
      "deadline: {:.3f} s away, but reading {} prompt tokens takes at least {:.3f} s at "
      "the {:.0f} tokens/s measured",
      Seconds(request.deadline - now), request.prompt.size(), Seconds(predicted), rate));
}

void EngineLoop::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
  wake_.notify_one();
}

bool EngineLoop::Step() {
  bool ran = false;
  try {
    ran = Advance();
  } catch (const DeviceError& error) {
    Fail(absl::InternalError(fmt::format("the device has failed: {}", error.what())));
  }
  Publish();
  return ran;
}

bool EngineLoop::Advance() {
  TakeInbox();
  if (!ended_.empty()) Publish();
  ForkReady();
  const Schedule& plan = Plan();
  Preempt(plan);
  BuildBatch(plan);
  const bool ran = !batch_.empty() && RunBatch();
  if (ran) Deliver();
  return ran;
}

void EngineLoop::TakeInbox() {
  std::vector<std::unique_ptr<ActiveRequest>> submitted;
  std::vector<RequestId> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  const auto started = [](const auto& entry) { return entry.second->started(); };
  int64_t waiting = 0;
  if (!submitted.empty()) {
    waiting = std::count_if(requests_.begin(), requests_.end(), std::not_fn(started));
  }
  for (auto& active : submitted) Admit(std::move(active), waiting++);
  // First, since a deadline makes gRPC cancel the call too.
  EndExpired();
  for (const RequestId id : cancelled) {
    FinishRequest(id, absl::CancelledError("the request was cancelled"));
  }
}

void EngineLoop::Admit(std::unique_ptr<ActiveRequest> active, int64_t requests_ahead) {
  ActiveRequest& a = *active;
  a.unfinished_samples = 1;
  auto sequence = std::make_unique<Sequence>(&a.request, a.id, config(), parts_.tokenizer.get(),
                                             a.policy.get());
  AcceptedEvent event = {.id = a.id, .queue_position = requests_ahead};
  if (sequence->sparse) event.warning = PositionWarning(*a.policy);
  const auto rank = std::upper_bound(sequences_.begin(), sequences_.end(), sequence, RanksBefore);
  sequences_.insert(rank, std::move(sequence));
  requests_.emplace(a.id, std::move(active));
  a.sink->OnEvent(std::move(event));
}

void EngineLoop::EndExpired() {
  const absl::Time now = options().clock();
  std::vector<RequestId> expired;
  for (const auto& [id, active] : requests_) {
    if (active->request.deadline <= now) expired.push_back(id);
  }
  for (const RequestId id : expired) {
    FinishRequest(id, absl::DeadlineExceededError("the request's deadline has passed"));
  }
}

// Splits requests of several samples, whose prompt is stored but for its last token.
void EngineLoop::ForkReady() {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& first = *sequences_[i];
    if (first.forked || first.num_pending() > 0) continue;
    const int32_t num_samples = first.request->num_samples;
    std::vector<std::unique_ptr<Sequence>> siblings;
    for (int32_t sample = 1; sample < num_samples; ++sample) {
      siblings.push_back(std::make_unique<Sequence>(first, sample, Fork(first.session, pool_)));
    }
    first.forked = true;
    requests_.at(first.request_id)->unfinished_samples = num_samples;
    sequences_.insert(sequences_.begin() + static_cast<ptrdiff_t>(i) + 1,
                      std::make_move_iterator(siblings.begin()),
                      std::make_move_iterator(siblings.end()));
    i += siblings.size();
  }
}

const Schedule& EngineLoop::Plan() {
  views_.clear();
  for (const auto& sequence : sequences_) {
    const Session& s = sequence->session;
    views_.push_back({.pending = sequence->num_pending(),
                      .later = s.num_pending() - sequence->num_pending(),
                      .stored = s.stored,
                      .own_pages = OwnPages(s, pool_),
                      .writes_shared_page = WritesSharedPage(s, pool_),
                      .holds_pages = !s.pages.empty(),
                      .running = sequence->running,
                      .paused = requests_.at(sequence->request_id)->sink->Backlogged()});
  }
  return scheduler_.Plan(
      views_, pool_.num_free(),
      {.max_batch_tokens = options().max_batch_tokens, .max_running = options().max_running});
}

void EngineLoop::Preempt(const Schedule& plan) {
  for (const int32_t i : plan.preempted) Release(*sequences_[i]);
  stats_.preemptions += plan.preempted.size();
}

void EngineLoop::BuildBatch(const Schedule& plan) {
  batch_.Clear(static_cast<int32_t>(parts_.policy->classes.size()), config().num_layers,
               options().max_running);
  const absl::Time now = options().clock();
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (plan.tokens[i] == 0) continue;
    Sequence& sequence = *sequences_[i];
    ActiveRequest& active = *requests_.at(sequence.request_id);
    if (!active.started()) {
      active.scheduled = now;
      stats_.request_queue_time_seconds.Observe(Seconds(now - active.submitted));
      const std::lock_guard lock(mutex_);
      --num_waiting_;
    }
    if (!sequence.running) {
      sequence.running = true;
      sequence.slot = free_slots_.back();
      free_slots_.pop_back();
      ClearReuse(sequence);
    }
    Extend(sequence.session, pool_, plan.tokens[i], copies_);
    batch_.Add(sequence, plan.tokens[i]);
  }
}

// False where memory ran out: the requests of the batch have ended then. Other sequences share no
// page with theirs, and what the step has written of theirs goes with them.
bool EngineLoop::RunBatch() {
  const absl::Time begin = options().clock();
  absl::Status status;
  try {
    CopyPages();
    batch_.Run(*parts_.model, *parts_.kernels, parts_.memory);
    CountStep(options().clock() - begin);
  } catch (const std::bad_alloc&) {
    parts_.kernels->Sync();
    status = absl::ResourceExhaustedError(
        "memory ran out in a step; shorter contexts or a smaller max_batch_tokens need less");
  }
  ReleaseCopied(pool_, copies_);
  if (status.ok()) return true;
  std::set<RequestId> ids;
  for (const Batch::Slice& slice : batch_.slices()) ids.insert(slice.sequence->request_id);
  for (const RequestId id : ids) FinishRequest(id, status);
  return false;
}

void EngineLoop::CopyPages() {
  if (copies_.empty()) return;
  std::vector<int32_t> from;
  std::vector<int32_t> to;
  for (const PageCopy& copy : copies_) {
    from.push_back(copy.from);
    to.push_back(copy.to);
  }
  parts_.kernels->CopyPages({.cache = parts_.memory.cache,
                             .index = parts_.memory.index,
                             .from = from.data(),
                             .to = to.data(),
                             .num_layers = config().num_layers,
                             .num_pages = static_cast<int32_t>(copies_.size())});
}

// The device has failed: ends every request.
void EngineLoop::Fail(const absl::Status& status) {
  healthy_ = false;
  ReleaseCopied(pool_, copies_);
  finished_samples_.clear();
  while (!requests_.empty()) FinishRequest(requests_.begin()->first, status);
}

void EngineLoop::Deliver() {
  const absl::Time now = options().clock();
  for (const Batch::Slice& slice : batch_.slices()) DeliverSlice(slice, now);
  for (const auto& [id, sample] : finished_samples_) {
    std::erase_if(sequences_, [&, id = id, sample = sample](const auto& sequence) {
      return sequence->request_id == id && sequence->sample == sample;
    });
    if (--requests_.at(id)->unfinished_samples == 0) FinishRequest(id, absl::OkStatus());
  }
  finished_samples_.clear();
}

void EngineLoop::DeliverSlice(const Batch::Slice& slice, absl::Time now) {
  Sequence& sequence = *slice.sequence;
  ActiveRequest& active = *requests_.at(sequence.request_id);
  if (slice.use) CountAttention(active, *slice.use);
  if (slice.compared >= 0) CountFidelity(active, batch_.fidelity().layers(slice.compared));
  sequence.session.stored += slice.num_tokens;

  PrefillEvent prefill = {.done_tokens = std::min(sequence.session.stored, sequence.num_prompt),
                          .total_tokens = sequence.num_prompt};
  for (int32_t score = slice.first_score; score < slice.end_score; ++score) {
    prefill.prompt_logprobs.push_back(ToLogprobs(batch_.result(score)));
    ++sequence.num_scored;
  }
  if (prefill.done_tokens > active.reported_prefill) {
    stats_.prompt_tokens += prefill.done_tokens - active.reported_prefill;
    active.reported_prefill = prefill.done_tokens;
    active.sink->OnEvent(std::move(prefill));
  }
  if (slice.sample >= 0) DeliverToken(active, sequence, batch_.result(slice.sample), now);
}

void EngineLoop::DeliverToken(ActiveRequest& active, Sequence& sequence,
                              const Batch::Result& result, absl::Time now) {
  const int32_t token = result.chosen.token;
  sequence.session.tokens.push_back(token);
  sequence.adjusts.OnOutput(token);
  ++active.output_tokens;
  ++stats_.output_tokens;
  if (active.first_token == absl::InfinitePast()) {
    active.first_token = now;
    stats_.time_to_first_token_seconds.Observe(Seconds(now - active.submitted));
    stats_.request_prefill_time_seconds.Observe(Seconds(now - active.scheduled));
  } else if (sequence.last_output != absl::InfinitePast()) {
    stats_.inter_token_latency_seconds.Observe(Seconds(now - sequence.last_output));
  }
  sequence.last_output = now;

  const bool ends = sequence.EndsOutput(token);
  OutputEvent event = {.sample = sequence.sample, .token_ids = {token}};
  if (active.request.logprobs >= 0) event.logprobs.push_back(ToLogprobs(result));
  if (!ends && token < tokenizer().vocab_size()) event.text = sequence.text.Append(token);
  const bool full = sequence.num_output() >= active.request.max_output_tokens;
  if ((ends || full) && sequence.text.matched_stop() < 0) event.text += sequence.text.Finish();
  const int stop = sequence.text.matched_stop();
  active.sink->OnEvent(std::move(event));

  if (stop >= 0) {
    FinishSample(active, sequence,
                 {.reason = FinishReason::kStopString, .stop_string = active.request.stop[stop]});
  } else if (ends) {
    FinishSample(active, sequence, {.reason = FinishReason::kStopToken, .stop_token = token});
  } else if (full) {
    FinishSample(active, sequence, {.reason = FinishReason::kLength});
  }
}

void EngineLoop::FinishSample(ActiveRequest& active, Sequence& sequence,
                              SampleFinishedEvent event) {
  event.sample = sequence.sample;
  active.last_reason = event.reason;
  active.sink->OnEvent(std::move(event));
  CountReuse(active, sequence);
  Release(sequence);
  finished_samples_.emplace_back(active.id, sequence.sample);
}

void EngineLoop::FinishRequest(RequestId id, const absl::Status& status) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  const ActiveRequest& active = *it->second;
  RemoveSequences(id);
  const absl::Time now = options().clock();
  FinishedEvent event = {
      .status = status,
      .usage = {.prompt_tokens = static_cast<int64_t>(active.request.prompt.size()),
                .output_tokens = active.output_tokens},
      .attention = active.attention};
  Timings& timings = event.timings;
  const bool has_token = active.first_token != absl::InfinitePast();
  timings.queue = (active.started() ? active.scheduled : now) - active.submitted;
  if (active.started()) timings.prefill = (has_token ? active.first_token : now) - active.scheduled;
  if (has_token) {
    timings.first_token = active.first_token - active.submitted;
    timings.decode = now - active.first_token;
  }
  if (status.ok()) {
    ++stats_.finished[static_cast<size_t>(active.last_reason)];
    stats_.e2e_request_latency_seconds.Observe(Seconds(now - active.submitted));
    stats_.request_decode_time_seconds.Observe(Seconds(timings.decode));
    stats_.attended_ratio.Observe(active.attention.attended_ratio);
  } else {
    ++stats_.failures[status.code()];
  }
  if (!active.started()) {
    const std::lock_guard lock(mutex_);
    --num_waiting_;
  }
  ended_.emplace_back(active.sink, std::move(event));
  requests_.erase(it);
}

void EngineLoop::RemoveSequences(RequestId id) {
  std::erase_if(sequences_, [&](const auto& sequence) {
    if (sequence->request_id != id) return false;
    Release(*sequence);
    return true;
  });
}

void EngineLoop::Release(Sequence& sequence) {
  DropPages(sequence.session, pool_);
  if (std::exchange(sequence.running, false)) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void EngineLoop::CountAttention(ActiveRequest& active, const StepUse& use) {
  AttentionUse& total = active.attention;
  ++total.decode_steps;
  total.attended_ratio +=
      (use.attended_ratio - total.attended_ratio) / static_cast<double>(total.decode_steps);
  for (int stage = use.first_stage; stage < use.num_stages; ++stage) {
    ++total.refreshes[stage];
    ++stats_.stage_refreshes[stage];
  }
}

void EngineLoop::CountFidelity(ActiveRequest& active, std::span<const LayerFidelity> layers) {
  AttentionUse& total = active.attention;
  const auto count = static_cast<double>(++total.compared_tokens);
  total.fidelity.resize(layers.size(), {.recall = 0.0});
  for (size_t i = 0; i < layers.size(); ++i) {
    LayerFidelity& mean = total.fidelity[i];
    mean.recall += (layers[i].recall - mean.recall) / count;
    mean.error += (layers[i].error - mean.error) / count;
  }
  stats_.ObserveFidelity(layers);
}

// The device counts reuse by slot, from when a sequence gets the slot to when it ends.
void EngineLoop::ClearReuse(const Sequence& sequence) {
  const Selection& selection = parts_.memory.selection;
  if (!sequence.sparse) return;
  const std::vector<int64_t> zeros(selection.Reuse(1, 0, 0));
  parts_.kernels->Upload(selection.reuse + selection.Reuse(sequence.slot, 0, 0), zeros.data(),
                         static_cast<int64_t>(zeros.size() * sizeof(int64_t)));
}

void EngineLoop::CountReuse(ActiveRequest& active, const Sequence& sequence) {
  const Selection& selection = parts_.memory.selection;
  if (!sequence.sparse) return;
  std::vector<int64_t> counts(selection.Reuse(1, 0, 0));
  parts_.kernels->Download(counts.data(), selection.reuse + selection.Reuse(sequence.slot, 0, 0),
                           static_cast<int64_t>(counts.size() * sizeof(int64_t)));
  for (size_t i = 0; i < counts.size(); i += 2) {
    active.attention.selected_blocks += counts[i];
    active.attention.reused_blocks += counts[i + 1];
  }
}

void EngineLoop::CountStep(absl::Duration duration) {
  const bool prefill = batch_.reads_prompts();
  const auto tokens = static_cast<double>(batch_.num_tokens());
  (prefill ? stats_.step_seconds_prefill : stats_.step_seconds_decode).Observe(Seconds(duration));
  (prefill ? stats_.step_tokens_prefill : stats_.step_tokens_decode).Observe(tokens);
  if (!prefill || 2 * batch_.num_tokens() < options().max_batch_tokens) return;
  best_rate_ = std::max(best_rate_, tokens / Seconds(duration));
  if (++num_full_steps_ >= kRateSteps) stats_.peak_prefill_rate = best_rate_;
}

// Makes this step's counts visible, then tells the requests that have ended.
void EngineLoop::Publish() {
  stats_.kv_pages_used = pool_.num_pages() - pool_.num_free();
  {
    const std::lock_guard lock(mutex_);
    published_ = stats_;
    num_unfinished_ -= static_cast<int64_t>(ended_.size());
  }
  for (auto& [sink, event] : ended_) sink->OnEvent(std::move(event));
  ended_.clear();
}

EngineStats EngineLoop::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_;
  stats.requests_waiting = num_waiting_;
  stats.requests_running = num_unfinished_ - num_waiting_;
  stats.memory = parts_.MemoryInUse();
  return stats;
}

void EngineLoop::Start() {
  thread_ = std::thread(&EngineLoop::Loop, this);
}

void EngineLoop::Loop() {
  while (true) {
    const bool busy = Step();
    std::unique_lock lock(mutex_);
    if (stopping_) return;
    if (busy || !submitted_.empty() || !cancelled_.empty()) continue;
    if (num_unfinished_ > 0) {
      wake_.wait_for(lock, kBacklogPoll);
    } else {
      wake_.wait(lock);
    }
  }
}

void EngineLoop::Drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool EngineLoop::Idle() const {
  const std::lock_guard lock(mutex_);
  return num_unfinished_ == 0;
}

void EngineLoop::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  TakeInbox();
  while (!requests_.empty()) {
    FinishRequest(requests_.begin()->first, absl::UnavailableError("the server has stopped"));
  }
  Publish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<Checkpoint> checkpoint,
                                                       std::unique_ptr<Kernels> kernels,
                                                       EngineOptions options) {
  ASSIGN_OR_RETURN(EngineParts parts,
                   LoadEngineParts(std::move(checkpoint), std::move(kernels), std::move(options)));
  return std::make_unique<EngineLoop>(std::move(parts));
}

}  // namespace everlong
