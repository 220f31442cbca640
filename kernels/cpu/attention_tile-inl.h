// Scores, weights and sums of values over one tile of keys. Included once per target.
#if defined(EVERLONG_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVERLONG_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef EVERLONG_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define EVERLONG_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <limits>

#include "kernels/cpu/key_tile-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// scores[r][slot] = queries[r] * keys[.][slot].
struct ScoreTiles {
  const float* queries;
  const float* keys;
  int64_t width;
  TileFetcher* fetcher;
  float* scores;

  template <int kRows, int kPairs>
  void Run(int64_t row, int64_t pair) const {
    Tile<kRows, kPairs> tile;
    Clear<kRows, kPairs>(tile);
    constexpr int64_t kDepth = 8;  // divides width
    for (int64_t i = 0; i < width; i += kDepth) {
      fetcher->Fetch();
      Accumulate<F32, kRows, kPairs>(queries + row * width + i, width,
                                     {keys + i * kTileTokens, kTileTokens, kPanelColumns}, pair,
                                     kDepth, tile);
    }
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPairs; ++p) {
        float* out = scores + (row + r) * kTileTokens + FirstColumn(pair + p);
        hn::StoreU(tile[r][p][0], F32Tag(), out);
        hn::StoreU(tile[r][p][1], F32Tag(), out + kPanelColumns / 2);
      }
    }
  }
};

// out[r] = out[r] * keep[r] + sum over slots in [begin, end) of weights[r][slot] * values[slot].
template <class Format>
struct ValueTiles {
  const float* weights;  // [rows][kTileTokens]
  const float* keep;     // [rows]
  TileView<Format> view;
  int64_t begin;
  int64_t end;
  int64_t width;
  TileFetcher* fetcher;
  float* out;  // [rows][width]

  template <int kRows, int kPairs>
  void Run(int64_t row, int64_t pair) const {
    Tile<kRows, kPairs> tile;
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = hn::Set(F32Tag(), keep[row + r]);
      for (int p = 0; p < kPairs; ++p) {
        const float* from = out + (row + r) * width + FirstColumn(pair + p);
        tile[r][p][0] = hn::Mul(factor, F32::Load(from));
        tile[r][p][1] = hn::Mul(factor, F32::Load(from + kPanelColumns / 2));
      }
    }
    for (int64_t slot = begin; slot < end;) {
      fetcher->Fetch();
      const int64_t count = HWY_MIN(kBlockTokens - slot % kBlockTokens, end - slot);
      Accumulate<Format, kRows, kPairs>(weights + row * kTileTokens + slot, kTileTokens,
                                        {view.Value(slot), width, kPanelColumns}, pair, count,
                                        tile);
      slot += count;
    }
    for (int r = 0; r < kRows; ++r) {
      for (int p = 0; p < kPairs; ++p) {
        float* to = out + (row + r) * width + FirstColumn(pair + p);
        hn::StoreU(tile[r][p][0], F32Tag(), to);
        hn::StoreU(tile[r][p][1], F32Tag(), to + kPanelColumns / 2);
      }
    }
  }
};

HWY_INLINE float ExpOne(float x) {
  return hn::GetLane(Exp(hn::Set(F32Tag(), x)));
}

// The largest score of the slots below num_slots; the others become -infinity.
HWY_INLINE float LargestScore(float* scores, int64_t num_slots) {
  const Vec hidden = hn::Set(F32Tag(), -std::numeric_limits<float>::infinity());
  Vec largest = hidden;
  if (num_slots == kTileTokens) {
    for (int64_t i = 0; i < kTileTokens; i += kLanes) {
      largest = hn::Max(largest, F32::Load(scores + i));
    }
    return Max(largest);
  }
  const Vec count = hn::Set(F32Tag(), static_cast<float>(num_slots));
  for (int64_t i = 0; i < kTileTokens; i += kLanes) {
    const auto seen = hn::Lt(hn::Iota(F32Tag(), static_cast<float>(i)), count);
    const Vec score = hn::IfThenElse(seen, F32::Load(scores + i), hidden);
    largest = hn::Max(largest, score);
    hn::StoreU(score, F32Tag(), scores + i);
  }
  return Max(largest);
}

// scores[i] = e^(scores[i] - max). Returns their sum.
HWY_INLINE float Weigh(float* scores, float max) {
  Vec total = hn::Zero(F32Tag());
  for (int64_t i = 0; i < kTileTokens; i += kLanes) {
    const Vec weight = Exp(hn::Sub(F32::Load(scores + i), hn::Set(F32Tag(), max)));
    total = hn::Add(total, weight);
    hn::StoreU(weight, F32Tag(), scores + i);
  }
  return Sum(total);
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#endif
