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
  std::shared_ptr<Kernels> (*make)();
  DType activation_type = DType::kF32;
  DType weight_type = DType::kF32;  // what elements of matrices are rounded to; kF32: none is
  std::vector<DType> kv_types = {DType::kF32, DType::kF16, DType::kBF16};
};

// All backends: the reference, CPU kernels with several instruction sets and numbers of threads,
// and CUDA where there is a GPU.
std::vector<Backend> Backends();
// Kernels that nothing has used yet.
std::shared_ptr<Kernels> MakeFresh(const Backend& backend);
// Those whose memory is the process's own.
std::vector<Backend> HostBackends();
// Those that are compared with the reference.
std::vector<Backend> BackendsBesideReference();
// Those, and CPU kernels for every way of multiplying bytes.
std::vector<Backend> ByteProductBackends();
// Those that keep matrices in 8 bits.
std::vector<Backend> F8WeightBackends();
// Those, and all others.
std::vector<Backend> WeightBackends();

// A backend with one of its types of KV cache.
struct KvBackend {
  Backend backend;
  DType kv_type;

  std::string name() const { return backend.name + TypeName(kv_type); }
};
std::vector<KvBackend> KvBackends(const std::vector<Backend>& backends);

// Backends that compute with the same types, so that they share problems and expectations.
struct BackendFamily {
  std::string name;
  std::vector<Backend> members;

  DType activation_type() const { return members.front().activation_type; }
};
std::vector<BackendFamily> Families(const std::vector<Backend>& backends);

// A family with one of its types of KV cache.
struct KvFamily {
  BackendFamily family;
  DType kv_type;

  std::string name() const { return family.name + TypeName(kv_type); }
};
std::vector<KvFamily> KvFamilies(const std::vector<Backend>& backends);

// How test names and messages show them.
inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << backend.name;
}
inline void PrintTo(const KvBackend& backend, std::ostream* out) {
  *out << backend.name();
}
inline void PrintTo(const KvFamily& family, std::ostream* out) {
  *out << family.name();
}

class Device {
 public:
  explicit Device(std::shared_ptr<Kernels> kernels) : kernels_(std::move(kernels)) {}
  explicit Device(const Backend& backend) : Device(backend.make()) {}
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

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
  std::shared_ptr<Kernels> kernels_;
  std::vector<void*> placed_;
};

}  // namespace everlong
