#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "engine/attention_presets.h"
#include "engine/batch.h"
#include "engine/delivery.h"
#include "engine/engine_parts.h"
#include "engine/inbox.h"
#include "engine/model.h"
#include "engine/request_table.h"
#include "engine/scheduler.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

// Full steps that make a measured rate of prefill.
constexpr int kRateSteps = 8;

EngineStats InitialStats(const EngineParts& parts) {
  EngineStats stats;
  stats.kv_pages_total = parts.num_pages;
  stats.kv_page_bytes = parts.memory.cache.PageBytes() * parts.model->config().num_layers;
  return stats;
}

// The thread rule: client threads use `inbox_` and what is immutable in `parts_`; all else is the
// engine thread's.
class EngineLoop final : public Engine {
 public:
  explicit EngineLoop(EngineParts parts)
      : parts_(std::move(parts)),
        requests_(parts_.num_pages, options().max_running),
        stats_(InitialStats(parts_)),
        inbox_(options().max_waiting, stats_) {}
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
  void Cancel(RequestId id) override { inbox_.Cancel(id); }
  bool Step() override;
  void Start() override;
  void Drain() override { inbox_.Refuse("the server is shutting down"); }
  bool Idle() const override { return inbox_.Idle(); }
  void Stop() override;
  bool Healthy() const override { return healthy_; }
  EngineStats Stats() const override;

 private:
  absl::Time Now() const { return options().clock(); }

  bool Advance();
  void TakeInbox();
  void Admit(std::unique_ptr<ActiveRequest> active, int64_t requests_ahead);
  void BuildBatch(const Schedule& plan);
  void MarkStarted(ActiveRequest& active, absl::Time now);
  bool RunBatch();
  void CopyPages();
  void CountStep(absl::Duration duration);
  void DeliverBatch();
  void ClearReuse(const Sequence& sequence);
  void CountReuse(const Sequence& sequence, AttentionUse& total);
  void EndRequest(RequestId id, const absl::Status& status);
  void Fail(const absl::Status& status);
  void Publish();

  EngineParts parts_;
  RequestTable requests_;
  Scheduler scheduler_;
  Batch batch_;
  // Terminal events go out when what they tell of can be seen in Stats.
  std::vector<std::pair<std::shared_ptr<EventSink>, FinishedEvent>> ended_;
  EngineStats stats_;
  int num_full_steps_ = 0;  // that read prompts
  double best_rate_ = 0.0;  // of these

  Inbox inbox_;
  std::atomic<bool> healthy_{true};
  std::thread thread_;
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
  return inbox_.Submit(std::make_unique<ActiveRequest>(ActiveRequest{.request = std::move(request),
                                                                     .sink = std::move(sink),
                                                                     .policy = std::move(policy),
                                                                     .submitted = Now()}));
}

bool EngineLoop::Step() {
  bool ran = false;
  try {
    ran = Advance();
  } catch (const DeviceError& error) {
    Fail(absl::InternalError(fmt::format("the device has failed: {}", error.what())));
  } catch (const std::bad_alloc&) {
    Fail(absl::InternalError("memory ran out between steps"));
  }
  Publish();
  return ran;
}

// The device serves no request from here on.
void EngineLoop::Fail(const absl::Status& status) {
  healthy_ = false;
  inbox_.Refuse("the device has failed");
  requests_.ReleaseCopied();
  for (const RequestId id : requests_.All()) EndRequest(id, status);
}

bool EngineLoop::Advance() {
  TakeInbox();
  if (!ended_.empty()) Publish();
  requests_.Fork();
  BuildBatch(scheduler_.Plan(
      requests_.Views(), requests_.pages_free(),
      {.max_batch_tokens = options().max_batch_tokens, .max_running = options().max_running}));
  if (batch_.empty() || !RunBatch()) return false;
  DeliverBatch();
  return true;
}

void EngineLoop::TakeInbox() {
  Inbox::Commands commands = inbox_.Take();
  int64_t ahead = commands.submitted.empty() ? 0 : requests_.num_waiting();
  for (auto& active : commands.submitted) Admit(std::move(active), ahead++);
  // First, since a deadline makes gRPC cancel the call too.
  for (const RequestId id : requests_.Expired(Now())) {
    EndRequest(id, absl::DeadlineExceededError("the request's deadline has passed"));
  }
  for (const RequestId id : commands.cancelled) {
    EndRequest(id, absl::CancelledError("the request was cancelled"));
  }
}

void EngineLoop::Admit(std::unique_ptr<ActiveRequest> active, int64_t requests_ahead) {
  ActiveRequest& a = *active;
  a.samples.push_back(std::make_unique<Sequence>(&a.request, a.id, config(), parts_.tokenizer.get(),
                                                 a.policy.get()));
  AcceptedEvent event = {.id = a.id, .queue_position = requests_ahead};
  if (a.samples.front()->sparse) event.warning = PositionWarning(*a.policy);
  requests_.Add(std::move(active));
  a.sink->OnEvent(std::move(event));
}

// Makes room for the plan's tokens and collects them.
void EngineLoop::BuildBatch(const Schedule& plan) {
  for (const int32_t i : plan.preempted) requests_.Vacate(requests_.sequence(i));
  stats_.preemptions += plan.preempted.size();

  batch_.Clear(static_cast<int32_t>(parts_.policy->classes.size()), config().num_layers,
               options().max_running);
  const absl::Time now = Now();
  for (size_t i = 0; i < plan.tokens.size(); ++i) {
    if (plan.tokens[i] == 0) continue;
    Sequence& sequence = requests_.sequence(i);
    MarkStarted(requests_.RequestOf(sequence), now);
    if (requests_.Occupy(sequence, plan.tokens[i])) ClearReuse(sequence);
    batch_.Add(sequence, plan.tokens[i]);
  }
}

void EngineLoop::MarkStarted(ActiveRequest& active, absl::Time now) {
  if (active.started()) return;
  active.scheduled = now;
  stats_.request_queue_time_seconds.Observe(absl::ToDoubleSeconds(now - active.submitted));
  inbox_.OnWaited();
}

// False where memory ran out: the requests of the batch have ended then. Other sequences share no
// page with theirs, and what the step has written of theirs goes with them.
bool EngineLoop::RunBatch() {
  const absl::Time begin = Now();
  bool ran = false;
  try {
    CopyPages();
    batch_.Run(*parts_.model, *parts_.kernels, parts_.memory);
    CountStep(Now() - begin);
    ran = true;
  } catch (const std::bad_alloc&) {
    parts_.kernels->Sync();
  }
  requests_.ReleaseCopied();
  if (ran) return true;
  std::set<RequestId> ids;
  for (const Batch::Slice& slice : batch_.slices()) ids.insert(slice.sequence->request_id);
  for (const RequestId id : ids) {
    EndRequest(id, absl::ResourceExhaustedError("memory ran out in a step; shorter contexts or a "
                                                "smaller max_batch_tokens need less"));
  }
  return false;
}

void EngineLoop::CopyPages() {
  if (requests_.copies().empty()) return;
  std::vector<int32_t> from;
  std::vector<int32_t> to;
  for (const PageCopy& copy : requests_.copies()) {
    from.push_back(copy.from);
    to.push_back(copy.to);
  }
  parts_.kernels->CopyPages({.cache = parts_.memory.cache,
                             .index = parts_.memory.index,
                             .from = from.data(),
                             .to = to.data(),
                             .num_layers = config().num_layers,
                             .num_pages = static_cast<int32_t>(from.size())});
}

void EngineLoop::CountStep(absl::Duration duration) {
  const bool prefill = batch_.reads_prompts();
  const auto tokens = static_cast<double>(batch_.num_tokens());
  const double seconds = absl::ToDoubleSeconds(duration);
  (prefill ? stats_.step_seconds_prefill : stats_.step_seconds_decode).Observe(seconds);
  (prefill ? stats_.step_tokens_prefill : stats_.step_tokens_decode).Observe(tokens);
  if (!prefill || 2 * batch_.num_tokens() < options().max_batch_tokens) return;
  best_rate_ = std::max(best_rate_, tokens / seconds);
  if (++num_full_steps_ >= kRateSteps) stats_.peak_prefill_rate = best_rate_;
}

void EngineLoop::DeliverBatch() {
  const absl::Time now = Now();
  for (const Batch::Slice& slice : batch_.slices()) {
    const Sequence& sequence = *slice.sequence;
    ActiveRequest& active = requests_.RequestOf(sequence);
    if (!Deliver(batch_, slice, now, active, stats_)) continue;
    CountReuse(sequence, active.attention);
    if (requests_.EndSample(sequence)) EndRequest(active.id, absl::OkStatus());
  }
}

// The device counts reuse by slot, from when a sequence gets the slot to when it ends.
void EngineLoop::ClearReuse(const Sequence& sequence) {
  const Selection& selection = parts_.memory.selection;
  if (!sequence.sparse) return;
  const std::vector<int64_t> zeros(selection.Reuse(1, 0, 0));
  parts_.kernels->Upload(selection.reuse + selection.Reuse(sequence.slot, 0, 0), zeros.data(),
                         static_cast<int64_t>(zeros.size() * sizeof(int64_t)));
}

void EngineLoop::CountReuse(const Sequence& sequence, AttentionUse& total) {
  const Selection& selection = parts_.memory.selection;
  if (!sequence.sparse) return;
  std::vector<int64_t> counts(selection.Reuse(1, 0, 0));
  parts_.kernels->Download(counts.data(), selection.reuse + selection.Reuse(sequence.slot, 0, 0),
                           static_cast<int64_t>(counts.size() * sizeof(int64_t)));
  for (size_t i = 0; i < counts.size(); i += 2) {
    total.selected_blocks += counts[i];
    total.reused_blocks += counts[i + 1];
  }
}

// Nothing where it has ended before.
void EngineLoop::EndRequest(RequestId id, const absl::Status& status) {
  const std::unique_ptr<ActiveRequest> active = requests_.Remove(id);
  if (active == nullptr) return;
  if (!active->started()) inbox_.OnWaited();
  ended_.emplace_back(active->sink, Finish(*active, status, Now(), stats_));
}

// Makes this step's counts visible, then tells the requests that have ended.
void EngineLoop::Publish() {
  stats_.kv_pages_used = requests_.pages_used();
  inbox_.Publish(stats_, ended_.size());
  for (auto& [sink, event] : ended_) sink->OnEvent(std::move(event));
  ended_.clear();
}

EngineStats EngineLoop::Stats() const {
  EngineStats stats = inbox_.Stats();
  stats.memory = parts_.MemoryInUse();
  return stats;
}

void EngineLoop::Start() {
  thread_ = std::thread([this] {
    while (inbox_.WaitForWork(Step())) continue;
  });
}

void EngineLoop::Stop() {
  Drain();
  inbox_.Stop();
  if (thread_.joinable()) thread_.join();
  TakeInbox();
  for (const RequestId id : requests_.All()) {
    EndRequest(id, absl::UnavailableError("the server has stopped"));
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
