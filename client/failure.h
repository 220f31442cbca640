// What a failed call says to its user.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace everlong {

// The status of a call that failed with `code` (gRPC's numbers are abseil's) and `message`, as one
// line: what the google.rpc details in `details` (the trailer grpc-status-details-bin) add to the
// message follows it in brackets: field violations, reason, delay after which to try again.
absl::Status CallFailure(int code, const std::string& message, const std::string& details);

}  // namespace everlong
