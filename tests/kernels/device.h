// The backends under test, and typed access to a backend's memory.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/numerics.h"

namespace everlong {

struct Backend {
  std::string name;
  std::unique_ptr<Kernels> (*make)();
};

inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << backend.name;
}

// All backends; CPU kernels with several instruction sets and numbers of threads.
std::vector<Backend> Backends();
// Those that are compared with the reference.
std::vector<Backend> BackendsBesideReference();
// Those, and CPU kernels for every way of multiplying bytes.
std::vector<Backend> ByteProductBackends();

class Device {
 public:
  explicit Device(std::unique_ptr<Kernels> kernels) : kernels_(std::move(kernels)) {}
  explicit Device(const Backend& backend) : Device(backend.make()) {}

  Kernels* operator->() const { return kernels_.get(); }
  DType activation_type() const { return kernels_->activation_type(); }

  // What is placed stays until FreePlaced.
  void* Place(const std::vector<std::byte>& bytes);
  float* PlaceFloats(const Values& values);
  void* PlaceActivations(const Values& values);
  void FreePlaced();

  // These wait for the calls so far.
  std::vector<std::byte> Read(const void* device, int64_t bytes);
  Values ReadFloats(const void* device, int64_t count);
  Values ReadActivations(const void* device, int64_t count);

 private:
  std::unique_ptr<Kernels> kernels_;
  std::vector<void*> placed_;
};

}  // namespace everlong
