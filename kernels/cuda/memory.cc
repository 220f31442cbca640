#include "kernels/cuda/memory.h"

#include <algorithm>

#include "kernels/cuda/error.h"

namespace everlong::cuda {

// The driver may be gone when the process ends; nothing can be done about a failure here.
void FreeDevice::operator()(std::byte* block) const {
  cudaFree(block);
}

void FreePinned::operator()(std::byte* block) const {
  cudaFreeHost(block);
}

DeviceMemory AllocateDevice(int64_t bytes) {
  void* block = nullptr;
  EVERLONG_CUDA(cudaMalloc(&block, static_cast<size_t>(bytes)));
  return DeviceMemory(static_cast<std::byte*>(block));
}

PinnedMemory AllocatePinned(int64_t bytes) {
  void* block = nullptr;
  EVERLONG_CUDA(cudaMallocHost(&block, static_cast<size_t>(bytes)));
  return PinnedMemory(static_cast<std::byte*>(block));
}

namespace {

// A stream that no capture knows.
cudaStream_t OwnStream() {
  static const cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    EVERLONG_CUDA(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
  }();
  return stream;
}

}  // namespace

void ZeroNow(void* device, int64_t bytes) {
  EVERLONG_CUDA(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), OwnStream()));
  EVERLONG_CUDA(cudaStreamSynchronize(OwnStream()));
}

void CopyNow(void* device, const void* host, int64_t bytes) {
  EVERLONG_CUDA(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                                OwnStream()));
  EVERLONG_CUDA(cudaStreamSynchronize(OwnStream()));
}

void* Scratch::Get(Purpose purpose, int64_t bytes) {
  std::vector<Block>& blocks = blocks_[purpose];
  if (blocks.empty() || blocks.back().bytes < bytes) {
    const int64_t twice = blocks.empty() ? 0 : 2 * blocks.back().bytes;
    const int64_t size = std::max<int64_t>({bytes, twice, 256});
    DeviceMemory memory = AllocateDevice(size);
    ZeroNow(memory.get(), size);
    blocks.push_back({.memory = std::move(memory), .bytes = size});
  }
  return blocks.back().memory.get();
}

}  // namespace everlong::cuda
