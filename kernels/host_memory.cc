#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <new>

#include "kernels/check.h"

namespace everlong {
namespace {

// Weights and caches are read in runs of a few KiB at scattered places: with pages of 4 KiB each
// run would wait for the translation of its addresses first. A refusal is no error.
void PreferHugePages(void* block, size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  if (bytes < 2 * kHugePage || std::align(kHugePage, kHugePage, block, bytes) == nullptr) return;
  madvise(block, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
}

}  // namespace

void* HostMemory::Allocate(int64_t bytes) {
  constexpr size_t kAlignment = 64;
  EVERLONG_CHECK(bytes >= 0);
  size_t space = static_cast<size_t>(bytes) + kAlignment;
  // Not aligned_alloc: calloc knows that fresh pages are zero and leaves them untouched.
  std::unique_ptr<void, Release> allocated(std::calloc(space, 1));
  if (allocated == nullptr) throw std::bad_alloc();
  void* block = allocated.get();
  std::align(kAlignment, static_cast<size_t>(bytes), block, space);
  PreferHugePages(block, static_cast<size_t>(bytes));
  blocks_.emplace(block, std::move(allocated));
  return block;
}

void HostMemory::Free(void* block) {
  EVERLONG_CHECK(block == nullptr || blocks_.erase(block) == 1);
}

}  // namespace everlong
