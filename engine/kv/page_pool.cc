#include "engine/kv/page_pool.h"

#include "engine/check.h"

namespace everlong {

PagePool::PagePool(int32_t num_pages) : refs_(num_pages, 0) {
  free_.reserve(num_pages);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::Allocate() {
  EVERLONG_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  refs_[page] = 1;
  return page;
}

void PagePool::Share(int32_t page) {
  EVERLONG_CHECK(refs_[page] > 0);
  ++refs_[page];
}

void PagePool::Release(int32_t page) {
  EVERLONG_CHECK(refs_[page] > 0);
  if (--refs_[page] == 0) free_.push_back(page);
}

}  // namespace everlong
