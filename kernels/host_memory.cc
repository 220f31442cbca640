#include "kernels/host_memory.h"

#include <new>

#include "kernels/check.h"

namespace everlong {

void* HostMemory::Allocate(int64_t bytes) {
  constexpr size_t kAlignment = 64;
  EVERLONG_CHECK(bytes >= 0);
  size_t space = static_cast<size_t>(bytes) + kAlignment;
  // Not aligned_alloc: calloc knows that fresh pages are zero and leaves them untouched.
  std::unique_ptr<void, Release> allocated(std::calloc(space, 1));
  if (allocated == nullptr) throw std::bad_alloc();
  void* block = allocated.get();
  std::align(kAlignment, static_cast<size_t>(bytes), block, space);
  blocks_.emplace(block, std::move(allocated));
  return block;
}

void HostMemory::Free(void* block) {
  EVERLONG_CHECK(block == nullptr || blocks_.erase(block) == 1);
}

}  // namespace everlong
