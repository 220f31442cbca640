// Where clients' threads and the engine's meet: what they ask of it, and what it lets them know.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/active_request.h"
#include "engine/request.h"
#include "engine/stats.h"

namespace everlong {

// One mutex guards everything; it is held for moves and copies only, never while a sink is called.
class Inbox {
 public:
  struct Commands {
    std::vector<std::unique_ptr<ActiveRequest>> submitted;  // in the order of their ids
    std::vector<RequestId> cancelled;                       // may name requests that have ended
  };

  Inbox(int32_t max_waiting, const EngineStats& stats);

  // Any thread. What Engine's methods of these names promise; Submit gives the request its id.
  absl::StatusOr<RequestId> Submit(std::unique_ptr<ActiveRequest> active);
  void Cancel(RequestId id);
  bool Idle() const;
  EngineStats Stats() const;  // without the memory in use

  // Any thread. From now on Submit says UNAVAILABLE, for this reason.
  void Refuse(std::string reason);
  // Any thread. Ends WaitForWork, now and later.
  void Stop();

  // Engine thread. What has come since the last call.
  Commands Take();
  // Engine thread. A request was scheduled for the first time, or ended before it was.
  void OnWaited();
  // Engine thread. Stats from now on; `num_ended` requests have ended since the last call.
  void Publish(const EngineStats& stats, size_t num_ended);
  // Engine thread, which is `busy` or found nothing to do. Returns when a step may find something;
  // false once Stop was called.
  bool WaitForWork(bool busy);

 private:
  absl::Status CheckDeadline(const ActiveRequest& active) const;

  const int32_t max_waiting_;
  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable wake_;
  Commands commands_;
  RequestId next_id_ = 1;
  int64_t num_waiting_ = 0;  // submitted and not yet scheduled
  int64_t num_unfinished_ = 0;
  std::string refusal_;  // empty: requests are welcome
  bool stopping_ = false;
  EngineStats published_;
};

}  // namespace everlong
