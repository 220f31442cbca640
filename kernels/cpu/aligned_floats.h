#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include "hwy/aligned_allocator.h"

namespace everlong::cpu {

// Scratch memory on cache lines, which only grows. What it held is lost when it does.
class AlignedFloats {
 public:
  void Reserve(int64_t size) {
    if (size <= size_) return;
    size_ = std::max(size, size_ + size_ / 2);
    floats_ = hwy::AllocateAligned<float>(size_);
    if (floats_ == nullptr) throw std::bad_alloc();
  }
  float* data() const { return floats_.get(); }

 private:
  int64_t size_ = 0;
  hwy::AlignedFreeUniquePtr<float[]> floats_;
};

}  // namespace everlong::cpu
