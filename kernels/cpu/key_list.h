// The keys that a query block reads for one KV head, in token order, cut into tiles of kTileBlocks
// blocks: the unit in which attention is computed.
//
// With streaming positions the keys are numbered from 0 on, through sinks, selection and window,
// and tile t holds the numbers from 64 t on. Otherwise the keys before the window, the far ones,
// have tiles of their own, and keys of the window are numbered from its beginning: only distances
// matter to them. So dense attention reads a sequence page by page.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/args.h"

namespace everlong::cpu {

inline constexpr int64_t kTileBlocks = 8;
inline constexpr int64_t kTileTokens = kTileBlocks * kBlockTokens;

struct KeyList {
  std::span<const int32_t> selected;
  int64_t num_sinks = 0;
  int64_t window_begin = 0;
  int64_t end = 0;              // position behind the last key
  bool numbered_alike = false;  // streaming

  int64_t FarBlocks() const {
    return num_sinks / kBlockTokens + static_cast<int64_t>(selected.size());
  }
  // Tiles before the first numbered one.
  int64_t FarTiles() const {
    return numbered_alike ? 0 : (FarBlocks() + kTileBlocks - 1) / kTileBlocks;
  }
  int64_t NumTiles() const { return FarTiles() + (Number(end) + kTileTokens - 1) / kTileTokens; }

  int64_t Number(int64_t position) const {
    return position - window_begin + (numbered_alike ? FarBlocks() * kBlockTokens : 0);
  }

  // The `i`th block of a tile.
  int64_t Block(int64_t tile, int64_t i) const {
    const int64_t sinks = num_sinks / kBlockTokens;
    const int64_t far = FarBlocks();
    int64_t index = tile * kTileBlocks + i;
    if (tile >= FarTiles() && !numbered_alike) index += far - FarTiles() * kTileBlocks;
    if (index >= far) return window_begin / kBlockTokens + index - far;
    return index < sinks ? index : selected[index - sinks];
  }

  // Slots of a tile that a query at `position` sees, not more than kTileTokens, perhaps less than
  // 0.
  int64_t SlotsSeen(int64_t tile, int64_t position) const {
    const int64_t slots = tile < FarTiles()
                              ? FarBlocks() * kBlockTokens - tile * kTileTokens
                              : Number(position) + 1 - (tile - FarTiles()) * kTileTokens;
    return slots < kTileTokens ? slots : kTileTokens;
  }
};

}  // namespace everlong::cpu
