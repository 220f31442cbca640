// The end of a product, with plain or quantised matrices: its sums are stored. Included once per
// target.
#if defined(EVERLONG_KERNELS_CPU_STORE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVERLONG_KERNELS_CPU_STORE_TILE_INL_H_
#undef EVERLONG_KERNELS_CPU_STORE_TILE_INL_H_
#else
#define EVERLONG_KERNELS_CPU_STORE_TILE_INL_H_
#endif

#include "kernels/args.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// Stores one vector of sums at `column` of `row`; the matrix may end inside it.
HWY_INLINE void StoreSums(const MatMulArgs& args, int64_t row, int64_t column, Vec sums) {
  float* out = static_cast<float*>(args.out) + row * args.out_stride + column;
  const float* bias = args.bias == nullptr ? nullptr : args.bias + column;
  const bool add = args.mode == MatMulOut::kAddF32;
  const F32Tag f32;
  if (column + kLanes <= args.w.rows) {
    if (bias != nullptr) sums = hn::Add(sums, hn::LoadU(f32, bias));
    if (add) sums = hn::Add(sums, hn::LoadU(f32, out));
    hn::StoreU(sums, f32, out);
    return;
  }
  float values[kLanes];
  hn::StoreU(sums, f32, values);
  for (int64_t i = 0; column + i < args.w.rows; ++i) {
    float value = values[i];
    if (bias != nullptr) value += bias[i];
    out[i] = add ? value + out[i] : value;
  }
}

// Stores the tile of rows from `row` on and pairs from `pair` of the matrix on.
template <int kRows, int kPairs>
HWY_INLINE void StoreTile(const MatMulArgs& args, int64_t row, int64_t pair,
                          const Tile<kRows, kPairs>& tile) {
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPairs; ++p) {
      const int64_t column = FirstColumn(pair + p);
      StoreSums(args, row + r, column, tile[r][p][0]);
      StoreSums(args, row + r, column + kPanelColumns / 2, tile[r][p][1]);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#endif
