#include "tests/kernels/device.h"

#include "hwy/targets.h"

namespace everlong {
namespace {

// CPU kernels for targets like `best` and those below it, also on machines with better ones; 0: no
// such limit. It holds until the next call, so one CPU backend is in use at a time.
std::unique_ptr<Kernels> MakeCpuKernelsFor(int64_t best, int num_threads) {
  hwy::SetSupportedTargetsForTest(0);
  // Better targets have lower bits.
  if (best != 0) hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & ~(best - 1));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return MakeCpuKernels(num_threads);
}

}  // namespace

std::vector<Backend> BackendsBesideReference() {
  return {{"cpu_1_thread", [] { return MakeCpuKernelsFor(0, 1); }},
          {"cpu_avx2_2_threads", [] { return MakeCpuKernelsFor(HWY_AVX2, 2); }},
          {"cpu_ssse3_3_threads", [] { return MakeCpuKernelsFor(HWY_SSSE3, 3); }}};
}

std::vector<Backend> ByteProductBackends() {
  std::vector<Backend> backends = BackendsBesideReference();
#if HWY_ARCH_X86
  backends.push_back({"cpu_avx3_2_threads", [] { return MakeCpuKernelsFor(HWY_AVX3, 2); }});
#endif
  return backends;
}

std::vector<Backend> Backends() {
  std::vector<Backend> backends = BackendsBesideReference();
  backends.push_back({"reference", MakeReferenceKernels});
  return backends;
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
