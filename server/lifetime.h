// How a serving process ends.
#pragma once

#include <signal.h>

#include "absl/time/time.h"
#include "server/server.h"

namespace everlong {

// Serves until one of `signals`, which are blocked in every thread, or a device fault; then drains
// for at most `drain`, unless a second signal asks for haste. Health is NOT_SERVING from then on.
// Returns the exit status: 0 after a drain, 1 after a fault or a second signal.
int ServeUntilSignalled(Server& server, const sigset_t& signals, absl::Duration drain);

}  // namespace everlong
