#include "server/lifetime.h"

#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace everlong {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(50);

// True if one of `signals` came within `time`.
bool Signalled(const sigset_t& signals, absl::Duration time) {
  const timespec timeout = absl::ToTimespec(time);
  return sigtimedwait(&signals, nullptr, &timeout) > 0;
}

// False where a second signal asks for haste.
bool WaitIdle(const Server& server, const sigset_t& signals, absl::Duration limit) {
  const absl::Time deadline = absl::Now() + limit;
  while (!server.Idle() && absl::Now() < deadline) {
    if (Signalled(signals, absl::Milliseconds(10))) return false;
  }
  return true;
}

}  // namespace

int ServeUntilSignalled(Server& server, const sigset_t& signals, absl::Duration drain) {
  while (server.Healthy() && !Signalled(signals, kPoll)) {
  }
  server.Drain();
  if (server.Healthy()) {
    spdlog::info("draining for at most {}", absl::FormatDuration(drain));
    if (!WaitIdle(server, signals, drain)) return 1;
  }
  server.Stop();
  if (!server.Healthy()) {
    spdlog::critical("the device has failed; exiting for a restart");
    return 1;
  }
  spdlog::info("stopped");
  return 0;
}

}  // namespace everlong
