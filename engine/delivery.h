// What a step gave, told to those who asked and counted.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/active_request.h"
#include "engine/batch.h"
#include "engine/stats.h"

namespace everlong {

// Engine thread only. Calls the sink with everything that the slice's step gave its sequence, which
// takes its new token. True: the output has ended.
bool Deliver(const Batch& batch, const Batch::Slice& slice, absl::Time now, ActiveRequest& active,
             EngineStats& stats);

// The event that ends the request, for its sink once the stats that count it can be seen. OK: by
// itself, as active.last_reason says.
FinishedEvent Finish(const ActiveRequest& active, const absl::Status& status, absl::Time now,
                     EngineStats& stats);

}  // namespace everlong
