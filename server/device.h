// The backend that --device asks for.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace everlong {

struct Device {
  std::string name;  // "cpu" or "cuda"
  std::unique_ptr<Kernels> kernels;
};

// `choice`: "cpu", "cuda" or "auto", which takes the CPU where there is no CUDA and logs why.
// FAILED_PRECONDITION says why CUDA cannot be had.
absl::StatusOr<Device> OpenDevice(const std::string& choice, int num_threads);

}  // namespace everlong
