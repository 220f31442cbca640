#include "engine/inbox.h"

#include <chrono>
#include <utility>

#include "absl/time/time.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

// How long the engine sleeps when every sequence waits for its reader.
constexpr auto kBacklogPoll = std::chrono::milliseconds(2);

}  // namespace

Inbox::Inbox(int32_t max_waiting, const EngineStats& stats)
    : max_waiting_(max_waiting), published_(stats) {}

absl::StatusOr<RequestId> Inbox::Submit(std::unique_ptr<ActiveRequest> active) {
  const std::lock_guard lock(mutex_);
  if (!refusal_.empty()) return absl::UnavailableError(refusal_);
  if (num_waiting_ >= max_waiting_) {
    return absl::ResourceExhaustedError(fmt::format(
        "{} requests are waiting, the limit max_waiting is {}", num_waiting_, max_waiting_));
  }
  RETURN_IF_ERROR(CheckDeadline(*active));
  ++num_waiting_;
  ++num_unfinished_;
  const RequestId id = next_id_++;
  active->id = id;
  commands_.submitted.push_back(std::move(active));
  wake_.notify_one();
  return id;
}

// Refuses what cannot be read in time even at the best rate seen. Holds mutex_.
absl::Status Inbox::CheckDeadline(const ActiveRequest& active) const {
  const double rate = published_.peak_prefill_rate;
  if (rate == 0) return absl::OkStatus();
  const size_t tokens = active.request.prompt.size();
  const absl::Duration predicted = absl::Seconds(static_cast<double>(tokens) / rate);
  const absl::Duration left = active.request.deadline - active.submitted;
  if (predicted <= left) return absl::OkStatus();
  return absl::DeadlineExceededError(
      fmt::format("deadline: {:.3f} s away, but reading {} prompt tokens takes at least {:.3f} s "
                  "at the {:.0f} tokens/s measured",
                  absl::ToDoubleSeconds(left), tokens, absl::ToDoubleSeconds(predicted), rate));
}

void Inbox::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  commands_.cancelled.push_back(id);
  wake_.notify_one();
}

bool Inbox::Idle() const {
  const std::lock_guard lock(mutex_);
  return num_unfinished_ == 0;
}

EngineStats Inbox::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_;
  stats.requests_waiting = num_waiting_;
  stats.requests_running = num_unfinished_ - num_waiting_;
  return stats;
}

void Inbox::Refuse(std::string reason) {
  const std::lock_guard lock(mutex_);
  refusal_ = std::move(reason);
}

void Inbox::Stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_.notify_one();
}

Inbox::Commands Inbox::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(commands_, {});
}

void Inbox::OnWaited() {
  const std::lock_guard lock(mutex_);
  --num_waiting_;
}

void Inbox::Publish(const EngineStats& stats, size_t num_ended) {
  const std::lock_guard lock(mutex_);
  published_ = stats;
  num_unfinished_ -= static_cast<int64_t>(num_ended);
}

bool Inbox::WaitForWork(bool busy) {
  std::unique_lock lock(mutex_);
  if (stopping_) return false;
  if (busy || !commands_.submitted.empty() || !commands_.cancelled.empty()) return true;
  if (num_unfinished_ > 0) {
    wake_.wait_for(lock, kBacklogPoll);
  } else {
    wake_.wait(lock);
  }
  return !stopping_;
}

}  // namespace everlong
