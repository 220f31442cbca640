// Opens the CUDA backend's module.
#include <dlfcn.h>

#include <filesystem>

#include "kernels/kernels.h"

namespace everlong {
namespace {

using MakeFunction = Kernels* (*)(DType weight_type, std::string* why);

// The program's, whatever it was called by; ends in a slash.
std::string Directory() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::string() : program.parent_path().string() + "/";
}

struct Module {
  void* handle = nullptr;
  std::string error;  // where there is none
};

Module OpenModule() {
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL;
  Module module;
  // Without the driver nothing is gained by reading cuBLASLt, which is large.
  if (dlopen("libcuda.so.1", kFlags) == nullptr) {
    module.error = std::string("there is no NVIDIA driver: ") + dlerror();
    return module;
  }
  const std::string directory = Directory();
  // Beside the program, or where an installation has libraries.
  for (const std::string& place : {directory, directory + "../lib/", std::string()}) {
    module.handle = dlopen((place + "libeverlong_cuda.so").c_str(), kFlags);
    if (module.handle != nullptr) break;
    // A module that is there but cannot be loaded has the reason worth telling.
    const std::string error = dlerror();
    if (module.error.empty() ||
        error.find("libeverlong_cuda.so: cannot open") == std::string::npos) {
      module.error = error;
    }
  }
  return module;
}

}  // namespace

std::unique_ptr<Kernels> MakeCudaKernels(DType weight_type, std::string* why) {
  static const Module& module = *new Module(OpenModule());
  if (module.handle == nullptr) {
    *why = module.error;
    return nullptr;
  }
  const auto make = reinterpret_cast<MakeFunction>(dlsym(module.handle, "EverlongMakeCudaKernels"));
  if (make == nullptr) {
    *why = dlerror();
    return nullptr;
  }
  return std::unique_ptr<Kernels>(make(weight_type, why));
}

}  // namespace everlong
