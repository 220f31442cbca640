#include "kernels/cuda/rope.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

constexpr int64_t kParts = 1024;  // of high and page
constexpr int64_t kOffsets = 64;

// Turns of `count` multiples of `unit` positions.
void Append(std::vector<float2>& turns, std::span<const float> inv_freq, int64_t unit,
            int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    for (const float frequency : inv_freq) {
      const double angle = static_cast<double>(n * unit) * frequency;
      turns.push_back({static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))});
    }
  }
}

// high, page and offset, one after the other.
DeviceMemory MakeTurns(std::span<const float> inv_freq) {
  std::vector<float2> turns;
  turns.reserve((2 * kParts + kOffsets) * inv_freq.size());
  Append(turns, inv_freq, kParts * kOffsets, kParts);
  Append(turns, inv_freq, kOffsets, kParts);
  Append(turns, inv_freq, 1, kOffsets);
  const auto bytes = static_cast<int64_t>(turns.size() * sizeof(float2));
  DeviceMemory memory = AllocateDevice(bytes);
  CopyNow(memory.get(), turns.data(), bytes);
  return memory;
}

}  // namespace

RopeTables::Table& RopeTables::Find(const Rope& rope, int32_t head_dim) {
  const std::span<const float> inv_freq(rope.inv_freq, static_cast<size_t>(head_dim) / 2);
  const auto found = std::find_if(tables_.begin(), tables_.end(), [&](const Table& table) {
    return std::equal(inv_freq.begin(), inv_freq.end(), table.inv_freq.begin(),
                      table.inv_freq.end());
  });
  if (found != tables_.end()) return *found;
  tables_.push_back({.inv_freq = {inv_freq.begin(), inv_freq.end()}, .turns = nullptr});
  return tables_.back();
}

Rope RopeTables::Keep(const Rope& rope, int32_t head_dim) {
  return {.inv_freq = Find(rope, head_dim).inv_freq.data(), .scale = rope.scale};
}

RopeTable RopeTables::Get(const Rope& rope, int32_t head_dim) {
  Table& table = Find(rope, head_dim);
  if (table.turns == nullptr) table.turns = MakeTurns(table.inv_freq);
  const int64_t half = head_dim / 2;
  const auto* high = reinterpret_cast<const float2*>(table.turns.get());
  return {.high = high,
          .page = high + kParts * half,
          .offset = high + 2 * kParts * half,
          .scale = rope.scale};
}

}  // namespace everlong::cuda
