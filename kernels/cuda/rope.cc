#include "kernels/cuda/rope.h"

#include <cmath>
#include <vector>

#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

constexpr int64_t kParts = 1024;  // of high and page
constexpr int64_t kOffsets = 64;

// Turns of `count` multiples of `unit` positions.
void Append(std::vector<float2>& turns, const float* inv_freq, int64_t half, int64_t unit,
            int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(n * unit) * inv_freq[i];
      turns.push_back({static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))});
    }
  }
}

}  // namespace

RopeTable RopeTables::Get(const Rope& rope, int32_t head_dim) {
  const int64_t half = head_dim / 2;
  DeviceMemory& table = tables_[rope.inv_freq];
  if (table == nullptr) {
    std::vector<float2> turns;
    turns.reserve((2 * kParts + kOffsets) * half);
    Append(turns, rope.inv_freq, half, kParts * kOffsets, kParts);
    Append(turns, rope.inv_freq, half, kOffsets, kParts);
    Append(turns, rope.inv_freq, half, 1, kOffsets);
    const auto bytes = static_cast<int64_t>(turns.size() * sizeof(float2));
    table = AllocateDevice(bytes);
    CopyNow(table.get(), turns.data(), bytes);
  }
  const auto* high = reinterpret_cast<const float2*>(table.get());
  return {.high = high,
          .page = high + kParts * half,
          .offset = high + 2 * kParts * half,
          .scale = rope.scale};
}

}  // namespace everlong::cuda
