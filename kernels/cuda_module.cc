// Opens the CUDA backend's module.
#include <dlfcn.h>

#include "kernels/kernels.h"

namespace everlong {
namespace {

using MakeFunction = Kernels* (*)(DType weight_type, std::string* why);

// Beside the program, or where an installation has libraries.
std::string Directory() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&MakeCudaKernels), &info) == 0) return {};
  const std::string program = info.dli_fname;
  return program.substr(0, program.rfind('/') + 1);
}

void* OpenModule(std::string* why) {
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL;
  const std::string directory = Directory();
  for (const std::string& place : {directory, directory + "../lib/", std::string()}) {
    void* module = dlopen((place + "libeverlong_cuda.so").c_str(), kFlags);
    if (module != nullptr) return module;
    // A module that is there but cannot be loaded has the reason worth telling.
    const std::string error = dlerror();
    if (why->empty() || error.find("libeverlong_cuda.so: cannot open") == std::string::npos) {
      *why = error;
    }
  }
  return nullptr;
}

}  // namespace

std::unique_ptr<Kernels> MakeCudaKernels(DType weight_type, std::string* why) {
  why->clear();
  static void* const module = OpenModule(why);
  if (module == nullptr) {
    if (why->empty()) *why = "libeverlong_cuda.so could not be opened";
    return nullptr;
  }
  const auto make = reinterpret_cast<MakeFunction>(dlsym(module, "EverlongMakeCudaKernels"));
  if (make == nullptr) {
    *why = dlerror();
    return nullptr;
  }
  return std::unique_ptr<Kernels>(make(weight_type, why));
}

}  // namespace everlong
