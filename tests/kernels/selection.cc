#include "tests/kernels/selection.h"

#include <algorithm>
#include <cstring>

namespace everlong {
namespace {

std::vector<std::byte> Bytes(const std::vector<int32_t>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(int32_t));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<int32_t> ReadInts(Device& device, const int32_t* from, size_t count) {
  std::vector<int32_t> values(count);
  const auto bytes = static_cast<int64_t>(count * sizeof(int32_t));
  std::memcpy(values.data(), device.Read(from, bytes).data(), bytes);
  return values;
}

std::vector<int32_t> RandomSubset(std::mt19937& random, int32_t begin, int32_t end) {
  std::vector<int32_t> subset;
  for (int32_t i = begin; i < end; ++i) {
    if (random() % 2 == 0) subset.push_back(i);
  }
  return subset;
}

QueryBlock RandomBlock(std::mt19937& random, int64_t position) {
  const auto full_blocks = static_cast<int32_t>(position / 8);
  QueryBlock block;
  block.num_sinks = 8 * std::min(static_cast<int32_t>(random() % 5), full_blocks);
  const auto window = static_cast<int64_t>(random() % 120);
  block.window_begin = std::max<int64_t>((position - window) / 8 * 8, block.num_sinks);
  block.positions = static_cast<Positions>(random() % 3);
  block.clip_distance = static_cast<int32_t>(window) + 64;
  return block;
}

}  // namespace

HostSelection::HostSelection(int32_t layers, int32_t slots, int32_t kv_heads, int32_t capacity)
    : shape{.slots = slots, .kv_heads = kv_heads, .capacity = capacity},
      lists(static_cast<size_t>(layers) * slots * kv_heads * 4) {}

std::vector<int32_t>& HostSelection::List(int64_t layer, int64_t slot, int64_t head, int64_t list) {
  return lists[((layer * shape.slots + slot) * shape.kv_heads + head) * 4 + list];
}

const std::vector<int32_t>& HostSelection::List(int64_t layer, int64_t slot, int64_t head,
                                                int64_t list) const {
  return lists[((layer * shape.slots + slot) * shape.kv_heads + head) * 4 + list];
}

// What lies behind a list's end is -1: nothing may use it.
Selection HostSelection::Place(Device& device) const {
  std::vector<int32_t> blocks(lists.size() * shape.capacity, -1);
  std::vector<int32_t> counts;
  for (const std::vector<int32_t>& list : lists) {
    const auto to = blocks.begin() + static_cast<ptrdiff_t>(counts.size()) * shape.capacity;
    std::copy(list.begin(), list.end(), to);
    counts.push_back(static_cast<int32_t>(list.size()));
  }
  Selection selection = shape;
  selection.blocks = static_cast<int32_t*>(device.Place(Bytes(blocks)));
  selection.counts = static_cast<int32_t*>(device.Place(Bytes(counts)));
  return selection;
}

void HostSelection::Read(Device& device, const Selection& selection) {
  const std::vector<int32_t> counts = ReadInts(device, selection.counts, lists.size());
  const std::vector<int32_t> blocks =
      ReadInts(device, selection.blocks, lists.size() * shape.capacity);
  for (size_t i = 0; i < lists.size(); ++i) {
    const auto from = blocks.begin() + static_cast<ptrdiff_t>(i) * shape.capacity;
    lists[i].assign(from, from + counts[i]);
  }
}

HostSelection MakeSparse(Step& step, std::mt19937& random, int32_t layers, int32_t layer,
                         int32_t kv_heads) {
  step.blocks.clear();
  int64_t longest = 0;
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    longest = std::max(longest, step.length(s));
    for (int32_t row = step.query_begin[s]; row < step.query_begin[s + 1];) {
      const int64_t position = step.position(s, row);
      QueryBlock block = RandomBlock(random, position);
      block.sequence = s;
      block.first_row = row;
      block.num_rows = static_cast<int32_t>(
          std::min<int64_t>(64 - position % 64, step.query_begin[s + 1] - row));
      block.slot = random() % 3 == 0 ? -1 : static_cast<int32_t>(step.blocks.size());
      row += block.num_rows;
      step.blocks.push_back(block);
    }
  }
  HostSelection selection(layers, static_cast<int32_t>(step.blocks.size()), kv_heads,
                          static_cast<int32_t>(longest / 8));
  for (const QueryBlock& block : step.blocks) {
    for (int32_t head = 0; block.slot >= 0 && head < kv_heads; ++head) {
      selection.List(layer, block.slot, head, kFinalList) =
          RandomSubset(random, block.num_sinks / 8, static_cast<int32_t>(block.window_begin / 8));
    }
  }
  return selection;
}

std::vector<int64_t> ReadPositions(const Step& step, const QueryBlock& block, int32_t row,
                                   const std::vector<int32_t>& selected) {
  std::vector<int64_t> positions;
  for (int64_t p = 0; p < block.num_sinks; ++p) positions.push_back(p);
  for (const int32_t b : selected) {
    for (int64_t i = 0; i < 8; ++i) positions.push_back(int64_t{b} * 8 + i);
  }
  const int64_t own = step.position(block.sequence, row);
  for (int64_t p = block.window_begin; p <= own; ++p) positions.push_back(p);
  return positions;
}

}  // namespace everlong
