// The one place where the engine's status becomes gRPC's.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace everlong {

// Same code and message, with google.rpc details for programs: ErrorInfo always; BadRequest where
// the message of an INVALID_ARGUMENT begins with a field's path ("sampling.top_p: ..."); RetryInfo
// where trying again may help.
grpc::Status ToRpcStatus(const absl::Status& status);

}  // namespace everlong
