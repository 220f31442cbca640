#include "client/load.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <random>
#include <utility>

namespace everlong {
namespace {

using Clock = GenerateCalls::Clock;

// How long a stop may go unseen.
constexpr std::chrono::milliseconds kStopInterval(50);
// Without it, a server that refuses everything would be asked again at once, for ever.
constexpr double kPauseAfterFailureSeconds = 0.1;

class Load {
 public:
  Load(Connection& connection, const LoadPlan& plan)
      : plan_(plan), calls_(connection), arrivals_(plan.seed), gap_(std::max(plan.rate, 1e-9)) {
    if (plan_.rate > 0) next_arrival_ = gap_(arrivals_);
  }

  bool Done() const { return running_.empty() && NoneLeft(); }

  void Stop() {
    stopped_ = true;
    calls_.CancelAll();
  }

  // Starts what is due, then waits a little for something to happen.
  void Advance() {
    while (CanStart() && Now() >= next_arrival_) Start();
    const auto stop_check = Clock::now() + kStopInterval;
    const auto deadline = CanStart() ? std::min(stop_check, TimeOf(next_arrival_)) : stop_check;
    std::optional<GenerateCalls::Arrival> arrival = calls_.Next(deadline);
    if (!arrival) return;
    if (arrival->end) {
      End(arrival->id, *arrival->end);
    } else if (arrival->event.has_output()) {
      RecordTokens(arrival->event.output().token_ids_size(), Now(), running_.at(arrival->id));
    }
  }

  int64_t in_flight() const { return static_cast<int64_t>(running_.size()); }
  std::vector<CallRecord>& records() { return records_; }

 private:
  double Now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  Clock::time_point TimeOf(double seconds) const {
    return begin_ +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  bool NoneLeft() const {
    return stopped_ || (plan_.num_requests > 0 && num_started_ >= plan_.num_requests) ||
           (plan_.duration_seconds > 0 && std::max(Now(), next_arrival_) >= plan_.duration_seconds);
  }

  bool CanStart() const {
    return !NoneLeft() && (plan_.concurrency == 0 || in_flight() < plan_.concurrency);
  }

  void Start() {
    const int64_t index = num_started_++;
    const v1::GenerateRequest request = MakeLoadRequest(plan_, index);
    CallRecord& record = running_[index];
    record.prompt_tokens = request.token_ids().ids_size();
    record.arrival = plan_.rate > 0 ? next_arrival_ : Now();
    if (plan_.rate > 0) next_arrival_ += gap_(arrivals_);
    calls_.Start(index, request);
  }

  void End(int64_t id, const absl::Status& status) {
    CallRecord record = std::move(running_.at(id));
    running_.erase(id);
    if (stopped_ && !status.ok()) return;
    record.end = Now();
    record.status = status;
    if (!status.ok() && plan_.rate == 0) next_arrival_ = record.end + kPauseAfterFailureSeconds;
    records_.push_back(std::move(record));
  }

  const LoadPlan& plan_;
  GenerateCalls calls_;
  const Clock::time_point begin_ = Clock::now();
  std::mt19937_64 arrivals_;
  std::exponential_distribution<double> gap_;
  double next_arrival_ = 0;  // seconds since begin_, as all times
  int64_t num_started_ = 0;
  bool stopped_ = false;
  std::map<int64_t, CallRecord> running_;
  std::vector<CallRecord> records_;
};

}  // namespace

v1::GenerateRequest MakeLoadRequest(const LoadPlan& plan, int64_t index) {
  std::seed_seq seeds{static_cast<uint32_t>(plan.seed), static_cast<uint32_t>(plan.seed >> 32),
                      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)};
  std::mt19937_64 random(seeds);
  const auto draw = [&](int64_t min, int64_t max) {
    return std::uniform_int_distribution<int64_t>(min, max)(random);
  };
  v1::GenerateRequest request;
  request.set_model(plan.model);
  request.mutable_sampling()->set_seed(random());
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->set_max_output_tokens(
      draw(plan.output_tokens.min, plan.output_tokens.max));
  const int64_t prompt_tokens = draw(plan.prompt_tokens.min, plan.prompt_tokens.max);
  auto& ids = *request.mutable_token_ids()->mutable_ids();
  for (int64_t i = 0; i < prompt_tokens; ++i) {
    ids.Add(static_cast<int32_t>(draw(0, plan.vocab_size - 1)));
  }
  return request;
}

void RecordTokens(int64_t num_tokens, double now, CallRecord& record) {
  if (num_tokens == 0) return;
  if (record.output_tokens == 0) {
    record.first_token = now;
  } else {
    const double interval = (now - record.last_token) / static_cast<double>(num_tokens);
    record.intervals.push_back({interval, num_tokens});
  }
  record.last_token = now;
  record.output_tokens += num_tokens;
}

std::vector<CallRecord> RunLoad(Connection& connection, const LoadPlan& plan,
                                const std::atomic<bool>& stop, const LoadProgress& progress) {
  Load load(connection, plan);
  for (bool stopped = false; !load.Done();) {
    if (stop && !std::exchange(stopped, true)) load.Stop();
    load.Advance();
    progress(static_cast<int64_t>(load.records().size()), load.in_flight());
  }
  return std::move(load.records());
}

}  // namespace everlong
