#include "server/device.h"

#include "spdlog/spdlog.h"

namespace everlong {
namespace {

constexpr char kNoCuda[] = "this build has no CUDA backend";

}  // namespace

absl::StatusOr<Device> OpenDevice(const std::string& choice, int num_threads) {
  if (choice == "cuda") {
    return absl::FailedPreconditionError(std::string("--device cuda: ") + kNoCuda);
  }
  if (choice == "auto") spdlog::info("device: cpu, since {}", kNoCuda);
  return Device{"cpu", MakeCpuKernels(num_threads)};
}

}  // namespace everlong
