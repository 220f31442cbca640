// Owners of device and pinned host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace everlong::cuda {

struct FreeDevice {
  void operator()(std::byte* block) const;
};
struct FreePinned {
  void operator()(std::byte* block) const;
};
using DeviceMemory = std::unique_ptr<std::byte, FreeDevice>;
using PinnedMemory = std::unique_ptr<std::byte, FreePinned>;

// Throw std::bad_alloc where memory does not suffice, DeviceError for any other reason.
DeviceMemory AllocateDevice(int64_t bytes);
PinnedMemory AllocatePinned(int64_t bytes);

// Complete when they return, whatever streams do, also while one of them is captured.
void ZeroNow(void* device, int64_t bytes);
void CopyNow(void* device, const void* host, int64_t bytes);

// Device memory that operations use between their launches, by purpose. What it returned before may
// still be in use by work and graphs in flight, so nothing is released before the end; a purpose
// that outgrows its block gets one at least twice as large.
class Scratch {
 public:
  enum Purpose {
    kAttentionParts,     // partial results of decode attention
    kAttentionCounters,  // zero between launches
    kMatMul,             // cuBLASLt's workspace
    kSelectQueries,
    kSelectScores,
    kSelectCandidates,
    kChooseBest,
    kSample,
    kPurposes
  };

  // At least `bytes`, aligned to 256 bytes, zeroed when it is new.
  void* Get(Purpose purpose, int64_t bytes);
  template <class T>
  T* Get(Purpose purpose, int64_t count) {
    return static_cast<T*>(Get(purpose, count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  struct Block {
    DeviceMemory memory;
    int64_t bytes = 0;
  };
  std::vector<Block> blocks_[kPurposes];
};

}  // namespace everlong::cuda
