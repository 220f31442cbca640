// Ids and reference counts of the KV pages of one tier. Knows nothing of their bytes.
#pragma once

#include <cstdint>
#include <vector>

namespace everlong {

// Engine thread only. A page is free or held by `refs` sessions; misuse aborts.
class PagePool {
 public:
  explicit PagePool(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(refs_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  bool IsShared(int32_t page) const { return refs_[page] > 1; }

  // A page with one reference. There must be a free one.
  int32_t Allocate();
  void Share(int32_t page);
  void Release(int32_t page);

 private:
  std::vector<int32_t> refs_;
  std::vector<int32_t> free_;  // used as a stack, so that recently touched memory is reused first
};

}  // namespace everlong
