#include "server/device.h"

#include "fmt/format.h"
#include "spdlog/spdlog.h"

namespace everlong {

absl::StatusOr<std::unique_ptr<Kernels>> OpenDevice(const ServerOptions& options) {
  if (options.device != "cpu") {
    std::string why;
    auto cuda = MakeCudaKernels(options.weight_type.value_or(DType::kBF16), &why);
    if (cuda != nullptr) return cuda;
    if (options.device == "cuda") return absl::FailedPreconditionError("--device cuda: " + why);
    spdlog::info("device: cpu, since there is no cuda: {}", why);
  }
  if (options.weight_type) {
    return absl::InvalidArgumentError(
        "--weight-type: it is for cuda; the cpu computes from the checkpoint's own types");
  }
  return MakeCpuKernels(options.threads);
}

}  // namespace everlong
