// The backend that --device asks for.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"
#include "server/options.h"

namespace everlong {

// `auto` takes the CPU where CUDA cannot be had, and logs why. FAILED_PRECONDITION says why for
// `cuda`, INVALID_ARGUMENT that the device does not know an option.
absl::StatusOr<std::unique_ptr<Kernels>> OpenDevice(const ServerOptions& options);

}  // namespace everlong
