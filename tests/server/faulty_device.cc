// Stands in for the CUDA backend's module: the CPU backend, which fails as a device does once the
// file that the environment variable EVERLONG_FAULT names is there. Its content says how: "fault",
// then every Sync throws DeviceError; "memory", then the next Sync, which removes the file, throws
// std::bad_alloc.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

#include "tests/engine/hooked_kernels.h"

namespace everlong {
namespace {

class FaultyDevice final : public HookedKernels {
 public:
  explicit FaultyDevice(std::string file)
      : HookedKernels([] {}, MakeCpuKernels(/*num_threads=*/1)), file_(std::move(file)) {}

  void Sync() override {
    HookedKernels::Sync();
    std::string kind;
    std::ifstream(file_) >> kind;
    if (kind == "fault") throw DeviceError("cudaStreamSynchronize: an injected fault");
    if (kind != "memory") return;
    std::remove(file_.c_str());
    throw std::bad_alloc();
  }

 private:
  std::string file_;
};

}  // namespace
}  // namespace everlong

extern "C" everlong::Kernels* EverlongMakeCudaKernels(everlong::DType, std::string* why) {
  const char* file = std::getenv("EVERLONG_FAULT");
  if (file != nullptr) return new everlong::FaultyDevice(file);
  *why = "EVERLONG_FAULT is not set";
  return nullptr;
}
