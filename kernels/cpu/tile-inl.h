// The one matrix product under MatMul and Attention: a tile of rows by columns in registers, each
// element the sum of x[r][k] * b[k][n] over k in order. Therefore an element's rounding depends on
// neither the tile's shape nor on where the columns come from. Included once per target.
//
// Columns come in panels of 32, and in registers as pairs of vectors: pair p is vector
// p % kPairsPerPanel of the panel's columns 0..15 and the same of its columns 16..31. So the panel
// has one layout for all vector sizes, and where bf16 values share a word with their partner in the
// pair, one shift and one mask widen two vectors.
#if defined(EVERLONG_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVERLONG_KERNELS_CPU_TILE_INL_H_
#undef EVERLONG_KERNELS_CPU_TILE_INL_H_
#else
#define EVERLONG_KERNELS_CPU_TILE_INL_H_
#endif

#include "kernels/cpu/panel.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

inline constexpr int64_t kPairsPerPanel = kPanelColumns / 2 / kLanes;

// Rows of the largest tile: 16 accumulators of 32 registers, or 8 of 16.
#if HWY_ARCH_X86
inline constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
#else
inline constexpr int kTileRows = 8;
#endif

// Pairs that a tile takes at once, so that it has accumulators enough to hide the latency of FMA.
constexpr int PairsFor(int rows) {
  return rows <= kTileRows / 4 ? 4 : rows <= kTileRows / 2 ? 2 : 1;
}

// The column where the lower vector of a pair begins; the upper one begins 16 columns further on.
constexpr int64_t FirstColumn(int64_t pair) {
  return pair / kPairsPerPanel * kPanelColumns + pair % kPairsPerPanel * kLanes;
}

// A matrix of depth by columns. Column n of row k is at
//   data[n / 32 * panel_stride + k * row_stride + n % 32] but for PairedBF16.
template <class Format>
struct Columns {
  const typename Format::Element* data;
  int64_t row_stride;
  int64_t panel_stride;
};

template <class Format>
HWY_INLINE void LoadPair(Format, const typename Format::Element* panel, int64_t vector, Vec& lower,
                         Vec& upper) {
  lower = Format::Load(panel + vector * kLanes);
  upper = Format::Load(panel + kPanelColumns / 2 + vector * kLanes);
}

// Column n % 32 of a panel's row is element PairedPosition(n % 32).
struct PairedBF16 {
  using Element = uint16_t;
};
HWY_INLINE void LoadPair(PairedBF16, const uint16_t* panel, int64_t vector, Vec& lower,
                         Vec& upper) {
  const auto* words = reinterpret_cast<const uint32_t*>(panel) + vector * kLanes;
  const auto both = hn::LoadU(U32Tag(), words);
  lower = LowerBF16(both);
  upper = UpperBF16(both);
}

template <int kRows, int kPairs>
using Tile = Vec[kRows][kPairs][2];

template <int kRows, int kPairs>
HWY_INLINE void Clear(Tile<kRows, kPairs>& tile) {
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) tile[r][p][0] = tile[r][p][1] = hn::Zero(F32Tag());
  }
}

// tile[r][p] += x[r * x_stride] * columns[p].
template <int kRows, int kPairs>
HWY_INLINE void AddProducts(const float* HWY_RESTRICT x, int64_t x_stride,
                            const Vec (&columns)[kPairs][2], Tile<kRows, kPairs>& tile) {
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    const Vec broadcast = hn::Set(F32Tag(), x[r * x_stride]);
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      tile[r][p][0] = hn::MulAdd(broadcast, columns[p][0], tile[r][p][0]);
      tile[r][p][1] = hn::MulAdd(broadcast, columns[p][1], tile[r][p][1]);
    }
  }
}

// tile[r][p] += sum over k in [0, depth) of x[r * x_stride + k] * (pair + p of row k of b). With
// every row the line that is `fetch` elements away, if not 0, is fetched.
template <class Format, int kRows, int kPairs>
HWY_INLINE void Accumulate(const float* HWY_RESTRICT x, int64_t x_stride, Columns<Format> b,
                           int64_t pair, int64_t depth, Tile<kRows, kPairs>& tile,
                           int64_t fetch = 0) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[kPairs][2];
    HWY_UNROLL(4)
    for (int p = 0; p < kPairs; ++p) {
      const auto* row = b.data + (pair + p) / kPairsPerPanel * b.panel_stride + k * b.row_stride;
      if (fetch != 0) __builtin_prefetch(row + fetch);
      LoadPair(Format(), row, (pair + p) % kPairsPerPanel, columns[p][0], columns[p][1]);
    }
    AddProducts<kRows, kPairs>(x + k, x_stride, columns, tile);
  }
}

// Calls body.Run<rows, pairs>(row, pair); rows <= kRows and pairs <= kPairs.
template <int kRows, int kPairs, int kMostPairs, class Body>
void RunTile(const Body& body, int64_t row, int64_t pair, int64_t rows, int64_t pairs) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      constexpr int kMore = HWY_MIN(kMostPairs, PairsFor(kRows - 1));
      return RunTile<kRows - 1, kMore, kMostPairs>(body, row, pair, rows, pairs);
    }
  }
  if constexpr (kPairs > 1) {
    if (pairs < kPairs) {
      return RunTile<kRows, kPairs - 1, kMostPairs>(body, row, pair, rows, pairs);
    }
  }
  body.template Run<kRows, kPairs>(row, pair);
}

// Divides `rows` rows by `pairs` pairs evenly into the fewest tiles, of at most kMostRows by
// kMostPairs. All rows visit a panel before the next one is begun, so that memory is read once.
template <int kMostRows = kTileRows, int kMostPairs = 4, class Body>
void RunTiles(const Body& body, int64_t rows, int64_t pairs) {
  const int64_t row_tiles = (rows + kMostRows - 1) / kMostRows;
  const int64_t most_pairs =
      row_tiles == 1 ? HWY_MIN(kMostPairs, PairsFor(static_cast<int>(rows))) : 1;
  const int64_t pair_tiles = (pairs + most_pairs - 1) / most_pairs;
  for (int64_t i = 0; i < pair_tiles; ++i) {
    const int64_t pair = pairs * i / pair_tiles;
    const int64_t pair_end = pairs * (i + 1) / pair_tiles;
    for (int64_t j = 0; j < row_tiles; ++j) {
      const int64_t row = rows * j / row_tiles;
      const int64_t row_end = rows * (j + 1) / row_tiles;
      RunTile<kMostRows, HWY_MIN(kMostPairs, PairsFor(kMostRows)), kMostPairs>(
          body, row, pair, row_end - row, pair_end - pair);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#endif
