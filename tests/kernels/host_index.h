// An index of keys in host memory, addressed as args.h lays it out.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

#include "kernels/args.h"
#include "tests/kernels/device.h"
#include "tests/kernels/numerics.h"
#include "tests/kernels/step.h"

namespace everlong {

struct HostIndex {
  HostIndex(int32_t bits, int32_t kv_heads, int32_t head_dim, int64_t num_pages,
            int32_t num_layers);

  // That of all complete pages of `step` in a layer, as the reference makes it.
  static HostIndex Of(const HostCache& cache, const Step& step, int32_t bits, int32_t num_layers,
                      int32_t layer);

  // Its copy in a device's memory, and what a device has made of such a copy.
  KeyIndex Place(Device& device) const;
  void Read(Device& device, const KeyIndex& from);

  int64_t PageByte(int64_t layer, int64_t page) const;
  int64_t RangeByte(int64_t layer, int64_t page) const;
  std::vector<int32_t> Codes(int64_t layer, int64_t page, int64_t head, int64_t slot) const;
  float Scale(int64_t layer, int64_t page, int64_t head, int64_t slot) const;
  Values Mean(int64_t layer, int64_t page, int64_t head) const;
  // What the index holds for a key.
  std::vector<double> Key(int64_t layer, int64_t page, int64_t head, int64_t slot) const;

  // Of one layer. Keys of forgotten pages are NaN, and no code of their ranges is in use.
  void CopyPage(int64_t layer, int64_t from, int64_t to);
  void ForgetPage(int64_t layer, int64_t page);

  // Between what the keys of a page lie, and the distance between codes.
  struct Ranges {
    std::vector<double> lows;
    std::vector<double> highs;
    double unit;
  };
  Ranges RangesOf(int64_t layer, int64_t page, int64_t head) const;

  KeyIndex shape;  // without memory
  std::vector<std::byte> bytes;
  std::vector<std::byte> range_bytes;

 private:
  const std::byte* Head(int64_t layer, int64_t page, int64_t head) const;
};

// Keys of one page whose mean is 0 and whose elements are levels of an index of `bits`: odd
// integers up to 15, the largest among them, for 4; of one magnitude in a key for 1 and 2. All are
// multiplied by 1, 2 or 4.
void FillPageOnLevels(HostCache& cache, int64_t layer, int64_t page, int32_t bits,
                      std::mt19937& random);

}  // namespace everlong
