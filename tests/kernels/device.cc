#include "tests/kernels/device.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace everlong {
namespace {

// CPU kernels for targets like `best` and those below it, also on machines with better ones; 0: no
// such limit. It holds until the next call, so one CPU backend is in use at a time.
std::shared_ptr<Kernels> MakeCpuKernelsFor(int64_t best, int num_threads) {
  hwy::SetSupportedTargetsForTest(0);
  // Better targets have lower bits.
  if (best != 0) hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & ~(best - 1));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return MakeCpuKernels(num_threads);
}

// One for all tests, since a GPU takes long to set up; null where there is none.
std::shared_ptr<Kernels> SharedCudaKernels() {
  static std::string why;
  static const std::shared_ptr<Kernels> kernels = MakeCudaKernels(DType::kBF16, &why);
  return kernels;
}

std::vector<Backend> CpuBackends() {
  return {{"cpu_1_thread", [] { return MakeCpuKernelsFor(0, 1); }},
          {"cpu_avx2_2_threads", [] { return MakeCpuKernelsFor(HWY_AVX2, 2); }},
          {"cpu_ssse3_3_threads", [] { return MakeCpuKernelsFor(HWY_SSSE3, 3); }}};
}

std::vector<Backend> CudaBackends() {
  if (SharedCudaKernels() == nullptr) return {};
  return {{.name = "cuda",
           .make = SharedCudaKernels,
           .activation_type = DType::kBF16,
           .weight_type = DType::kBF16,
           .kv_types = {DType::kBF16, DType::kF8}}};
}

std::shared_ptr<Kernels> SharedF8CudaKernels() {
  static std::string why;
  static const std::shared_ptr<Kernels> kernels = MakeCudaKernels(DType::kF8, &why);
  return kernels;
}

std::vector<Backend> Join(std::vector<Backend> a, const std::vector<Backend>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

std::shared_ptr<Kernels> MakeFresh(const Backend& backend) {
  if (backend.activation_type == DType::kF32) return backend.make();
  std::string why;
  return MakeCudaKernels(backend.weight_type, &why);
}

std::vector<Backend> HostBackends() {
  return Join(CpuBackends(),
              {{.name = "reference",
                .make = [] { return std::shared_ptr<Kernels>(MakeReferenceKernels()); },
                .kv_types = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8}}});
}

std::vector<Backend> Backends() {
  return Join(HostBackends(), CudaBackends());
}

std::vector<Backend> BackendsBesideReference() {
  return Join(CpuBackends(), CudaBackends());
}

std::vector<Backend> ByteProductBackends() {
  std::vector<Backend> backends = BackendsBesideReference();
#if HWY_ARCH_X86
  backends.push_back({"cpu_avx3_2_threads", [] { return MakeCpuKernelsFor(HWY_AVX3, 2); }});
#endif
  return backends;
}

std::vector<Backend> F8WeightBackends() {
  if (SharedCudaKernels() == nullptr) return {};
  return {{.name = "cuda_f8_weights",
           .make = SharedF8CudaKernels,
           .activation_type = DType::kBF16,
           .weight_type = DType::kF8,
           .kv_types = {DType::kBF16, DType::kF8}}};
}

std::vector<Backend> WeightBackends() {
  return Join(Backends(), F8WeightBackends());
}

std::vector<KvBackend> KvBackends(const std::vector<Backend>& backends) {
  std::vector<KvBackend> with_types;
  for (const Backend& backend : backends) {
    for (const DType type : backend.kv_types) with_types.push_back({backend, type});
  }
  return with_types;
}

std::vector<BackendFamily> Families(const std::vector<Backend>& backends) {
  std::vector<BackendFamily> families;
  for (const Backend& backend : backends) {
    const std::string name = backend.name.substr(0, backend.name.find('_'));
    const auto same =
        std::find_if(families.begin(), families.end(),
                     [&](const BackendFamily& family) { return family.name == name; });
    if (same == families.end()) {
      families.push_back({name, {backend}});
    } else {
      same->members.push_back(backend);
    }
  }
  return families;
}

std::vector<KvFamily> KvFamilies(const std::vector<Backend>& backends) {
  std::vector<KvFamily> with_types;
  for (const BackendFamily& family : Families(backends)) {
    for (const DType type : family.members.front().kv_types) with_types.push_back({family, type});
  }
  return with_types;
}

// What is deferred may use what was placed. A fault is a failure of the test that caused it.
Device::~Device() {
  try {
    FreePlaced();
  } catch (const DeviceError& error) {
    ADD_FAILURE() << error.what();
  }
}

void* Device::Place(const std::vector<std::byte>& bytes) {
  void* device = kernels_->Allocate(static_cast<int64_t>(bytes.size()));
  kernels_->Upload(device, bytes.data(), static_cast<int64_t>(bytes.size()));
  placed_.push_back(device);
  return device;
}

void Device::FreePlaced() {
  kernels_->Sync();
  for (void* device : placed_) kernels_->Free(device);
  placed_.clear();
}

float* Device::PlaceFloats(const Values& values) {
  return static_cast<float*>(Place(Encode(DType::kF32, values)));
}

void* Device::PlaceActivations(const Values& values) {
  return Place(Encode(activation_type(), values));
}

std::vector<std::byte> Device::Read(const void* device, int64_t bytes) {
  std::vector<std::byte> host(bytes);
  kernels_->Sync();
  kernels_->Download(host.data(), device, bytes);
  return host;
}

Values Device::ReadFloats(const void* device, int64_t count) {
  return Decode(DType::kF32, Read(device, count * ByteSize(DType::kF32)).data(), count);
}

Values Device::ReadActivations(const void* device, int64_t count) {
  const DType type = activation_type();
  return Decode(type, Read(device, count * ByteSize(type)).data(), count);
}

}  // namespace everlong
