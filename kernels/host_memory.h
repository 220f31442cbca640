// Host memory that plays the part of device memory: what the CPU backends allocate.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <unordered_map>

namespace everlong {

// Zeroed blocks aligned to 64 bytes, all released with the object. Large blocks are backed by
// memory page by page, as they are touched. One thread.
class HostMemory {
 public:
  // Throws std::bad_alloc.
  void* Allocate(int64_t bytes);
  void Free(void* block);

 private:
  struct Release {
    void operator()(void* allocated) const { std::free(allocated); }
  };
  std::unordered_map<void*, std::unique_ptr<void, Release>> blocks_;
};

}  // namespace everlong
