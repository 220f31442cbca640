// Lists of selected blocks in host memory, and sparse query blocks.
#pragma once

#include <random>
#include <vector>

#include "tests/kernels/device.h"
#include "tests/kernels/step.h"

namespace everlong {

struct HostSelection {
  HostSelection(int32_t layers, int32_t slots, int32_t kv_heads, int32_t capacity);

  std::vector<int32_t>& List(int64_t layer, int64_t slot, int64_t head, int64_t list);
  const std::vector<int32_t>& List(int64_t layer, int64_t slot, int64_t head, int64_t list) const;

  Selection Place(Device& device) const;
  void Read(Device& device, const Selection& selection);

  Selection shape;  // pointers are null
  std::vector<std::vector<int32_t>> lists;
};

// Replaces the blocks of `step` by sparse ones that start at multiples of 64 positions: random
// sinks, windows, position rules, and slots with random lists in layer `layer`, or none. Returns
// those lists, of `layers` layers.
HostSelection MakeSparse(Step& step, std::mt19937& random, int32_t layers, int32_t layer,
                         int32_t kv_heads);

// The positions that a row of a block reads, in order.
std::vector<int64_t> ReadPositions(const Step& step, const QueryBlock& block, int32_t row,
                                   const std::vector<int32_t>& selected);

}  // namespace everlong
