// Keys and values of a tile of blocks, as f32. Included once per target.
#if defined(EVERLONG_KERNELS_CPU_KEY_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVERLONG_KERNELS_CPU_KEY_TILE_INL_H_
#undef EVERLONG_KERNELS_CPU_KEY_TILE_INL_H_
#else
#define EVERLONG_KERNELS_CPU_KEY_TILE_INL_H_
#endif

#include "kernels/cpu/key_list.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// Where the blocks of a tile are. Rows are `width` elements, key halves width / 2 apart.
template <class Format>
struct TileView {
  using Element = typename Format::Element;

  const Element* blocks[kTileBlocks];
  int64_t width;
  int64_t value_offset;  // of a slot's value from its key

  HWY_INLINE const Element* Key(int64_t slot) const {
    return blocks[slot / kBlockTokens] + slot % kBlockTokens * width;
  }
  HWY_INLINE const Element* Value(int64_t slot) const { return Key(slot) + value_offset; }
};

// Brings a tile into the L2 cache, some lines at a time between what is computed meanwhile. A core
// drops requests while it has many misses under way: not a good time is that of LoadKeys.
class TileFetcher {
 public:
  TileFetcher() = default;
  template <class Format>
  explicit TileFetcher(const TileView<Format>& tile)
      : block_lines_(2 * kBlockTokens * tile.width * sizeof(*tile.blocks[0]) / kLine),
        lines_left_(block_lines_),
        blocks_left_(kTileBlocks) {
    for (int64_t b = 0; b < kTileBlocks; ++b) {
      blocks_[b] = reinterpret_cast<const char*>(tile.blocks[b]);
    }
  }

  HWY_INLINE void Fetch() {
    if (blocks_left_ == 0) return;
    const char*& from = blocks_[kTileBlocks - blocks_left_];
    const int64_t lines = HWY_MIN(lines_left_, 16);
    for (int64_t i = 0; i < lines; ++i, from += kLine) __builtin_prefetch(from, 0, 2);
    lines_left_ -= lines;
    if (lines_left_ > 0) return;
    lines_left_ = block_lines_;
    --blocks_left_;
  }

 private:
  static constexpr int64_t kLine = 64;

  const char* blocks_[kTileBlocks] = {};
  int64_t block_lines_ = 0;
  int64_t lines_left_ = 0;  // of the block at hand
  int64_t blocks_left_ = 0;
};

// 16 bytes of each of kLanes slots: those of `slot` + t, + t + 4, + t + 8 .. one after another.
template <class Format>
HWY_INLINE WordVec LoadEveryFourth(const TileView<Format>& tile, int64_t slot, int64_t t,
                                   int64_t element) {
  const U32Tag words;
  const auto at = [&](int64_t i) HWY_ATTR {
    const auto* block = tile.blocks[slot / kBlockTokens + i / kBlockTokens];
    return reinterpret_cast<const uint32_t*>(block + i % kBlockTokens * tile.width + element);
  };
#if HWY_MAX_BYTES == 16
  return hn::LoadU(words, at(slot % kBlockTokens + t));
#else
  const auto first =
      hn::OddEvenBlocks(hn::LoadDup128(words, at(t + 4)), hn::LoadDup128(words, at(t)));
#if HWY_MAX_BYTES == 32
  return first;
#else
  const auto second =
      hn::OddEvenBlocks(hn::LoadDup128(words, at(t + 12)), hn::LoadDup128(words, at(t + 8)));
  return hn::ConcatUpperLower(words, second, first);
#endif
#endif
}

// Transposes: out[e] is element `element` + e of the keys of kLanes slots from `slot` on.
template <class Format, int kElements>
HWY_INLINE void LoadTransposed(const TileView<Format>& tile, int64_t slot, int64_t element,
                               Vec (&out)[kElements]) {
  WordVec rows[4];
  HWY_UNROLL(4)
  for (int t = 0; t < 4; ++t) rows[t] = LoadEveryFourth(tile, slot, t, element);
  const U32Tag words;
  const hn::RepartitionToWide<U32Tag> wide;
  const auto lower01 = hn::BitCast(wide, hn::InterleaveLower(words, rows[0], rows[1]));
  const auto lower23 = hn::BitCast(wide, hn::InterleaveLower(words, rows[2], rows[3]));
  const auto upper01 = hn::BitCast(wide, hn::InterleaveUpper(words, rows[0], rows[1]));
  const auto upper23 = hn::BitCast(wide, hn::InterleaveUpper(words, rows[2], rows[3]));
  constexpr int kStep = kElements / 4;
  Format::Unpack(hn::BitCast(words, hn::InterleaveLower(wide, lower01, lower23)), out);
  Format::Unpack(hn::BitCast(words, hn::InterleaveUpper(wide, lower01, lower23)), out + kStep);
  Format::Unpack(hn::BitCast(words, hn::InterleaveLower(wide, upper01, upper23)), out + 2 * kStep);
  Format::Unpack(hn::BitCast(words, hn::InterleaveUpper(wide, upper01, upper23)), out + 3 * kStep);
}

// Cosines and sines of a tile's slots, [width / 2][kTileTokens]; null: nothing is turned.
struct SlotAngles {
  const float* cos = nullptr;
  const float* sin = nullptr;
};

// Fills out[width][kTileTokens] with the keys of slots below num_slots, and what follows them in
// their last vector, turned.
template <class Format>
void LoadKeys(const TileView<Format>& tile, int64_t num_slots, SlotAngles angles, float* out) {
  constexpr int kElements = 16 / sizeof(typename Format::Element);
  const int64_t half = tile.width / 2;
  const F32Tag f32;
  for (int64_t i = 0; i < half; i += kElements) {
    for (int64_t slot = 0; slot < num_slots; slot += kLanes) {
      Vec first[kElements];
      Vec second[kElements];
      LoadTransposed<Format>(tile, slot, i, first);
      LoadTransposed<Format>(tile, slot, half + i, second);
      HWY_UNROLL(8)
      for (int e = 0; e < kElements; ++e) {
        const int64_t at = (i + e) * kTileTokens + slot;
        Vec a = first[e];
        Vec b = second[e];
        if (angles.cos != nullptr) {
          const Vec c = F32::Load(angles.cos + at);
          const Vec s = F32::Load(angles.sin + at);
          a = hn::NegMulAdd(second[e], s, hn::Mul(first[e], c));
          b = hn::MulAdd(first[e], s, hn::Mul(second[e], c));
        }
        hn::StoreU(a, f32, out + at);
        hn::StoreU(b, f32, out + half * kTileTokens + at);
      }
    }
  }
}

// Copies the values of slots below num_slots to out[kTileTokens][width] and views them there.
template <class Format>
TileView<F32> WidenValues(const TileView<Format>& tile, int64_t num_slots, float* out) {
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    for (int64_t i = 0; i < tile.width; i += kLanes) {
      hn::StoreU(Format::Load(tile.Value(slot) + i), F32Tag(), out + slot * tile.width + i);
    }
  }
  TileView<F32> widened = {{}, tile.width, 0};
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    widened.blocks[b] = out + b * kBlockTokens * tile.width;
  }
  return widened;
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#endif
