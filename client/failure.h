// A failed call in one readable line.
#pragma once

#include <grpcpp/support/status.h>

#include <string>
#include <string_view>

namespace everlong {

// The code as gRPC spells it, e.g. "INVALID_ARGUMENT".
std::string_view CodeName(grpc::StatusCode code);

// "CODE: message", followed by what the google.rpc details add to it: field violations, reason,
// delay after which to try again. Line breaks become spaces.
std::string DescribeFailure(const grpc::Status& status);

}  // namespace everlong
