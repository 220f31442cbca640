#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cc"
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/check.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quant_matmul.h"
#include "kernels/cpu/store_tile-inl.h"
#include "kernels/quant.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

template <class Format>
struct MatMulTiles {
  const MatMulArgs& args;
  int64_t first_row;
  int64_t first_pair;

  template <int kRows, int kPairs>
  void Run(int64_t row, int64_t pair) const {
    row += first_row;
    pair += first_pair;
    Tile<kRows, kPairs> tile;
    Clear<kRows, kPairs>(tile);
    const Columns<Format> weights = {static_cast<const typename Format::Element*>(args.w.data),
                                     kPanelColumns, kPanelColumns * args.w.cols};
    const auto* x = static_cast<const float*>(args.x) + row * args.x_stride;
    // Where a row of a panel is a line and takes long enough, it pays to fetch ahead: at first from
    // these panels, then from those after them. The hardware's own fetching is best for the rest.
    constexpr int64_t kRowBytes = kPanelColumns * sizeof(typename Format::Element);
    constexpr bool kFetch = kRowBytes == 64 && kRows >= 4;
    constexpr int64_t kAhead = 64;
    const int64_t begin = HWY_MAX(int64_t{0}, args.w.cols - kAhead);
    Accumulate<Format, kRows, kPairs>(x, args.x_stride, weights, pair, begin, tile,
                                      kFetch ? kAhead * kPanelColumns : 0);
    const int64_t next = HWY_MAX(int64_t{1}, kPairs / kPairsPerPanel) * weights.panel_stride;
    Accumulate<Format, kRows, kPairs>(
        x + begin, args.x_stride,
        {weights.data + begin * kPanelColumns, weights.row_stride, weights.panel_stride}, pair,
        args.w.cols - begin, tile, kFetch ? next - begin * kPanelColumns : 0);
    StoreTile<kRows, kPairs>(args, row, pair, tile);
  }
};

template <class Format>
void MatMulPanels(const MatMulArgs& args, const MatMulBlock& block) {
  RunTiles(MatMulTiles<Format>{args, block.row_begin, block.panel_begin * kPairsPerPanel},
           block.row_end - block.row_begin, (block.panel_end - block.panel_begin) * kPairsPerPanel);
}

void MatMulTask(const MatMulArgs& args, const MatMulBlock& block) {
  switch (args.w.type) {
    case DType::kF32:
      return MatMulPanels<F32>(args, block);
    case DType::kF16:
      return MatMulPanels<F16>(args, block);
    case DType::kBF16:
      return MatMulPanels<PairedBF16>(args, block);
    default:
      EVERLONG_CHECK(args.w.type < DType::kF8);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

namespace everlong::cpu {

HWY_EXPORT(MatMulTask);

namespace {

// Tasks are a few microseconds at least, and few enough for a thread, but not so few that one which
// is held up delays the rest by much.
constexpr int64_t kTaskMultiplies = 1 << 15;
constexpr int64_t kMaxTasksPerThread = 4;
constexpr int64_t kBlockRows = 256;
// Splitting activations: a microsecond or so.
constexpr int64_t kTaskElements = 4096;

int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

DigitRows MatMul::SplitRows(const MatMulArgs& args, ThreadPool& pool) {
  const int64_t cols = args.w.cols;
  const int64_t row_parts = cols / ScaledElements(args.w.type);
  const int64_t part_floats = static_cast<int64_t>(sizeof(RowPart) / sizeof(float));
  digits_.Reserve(args.rows * (CeilDiv(kDigits * cols, 4) + row_parts * part_floats));
  auto* parts = reinterpret_cast<RowPart*>(digits_.data());
  const DigitRows rows = {.digits = reinterpret_cast<int8_t*>(parts + args.rows * row_parts),
                          .parts = parts};
  const int64_t task_rows = CeilDiv(kTaskElements, cols);
  pool.Run(CeilDiv(args.rows, task_rows), [&](int64_t task, int) {
    const int64_t end = std::min<int64_t>(args.rows, (task + 1) * task_rows);
    for (int64_t row = task * task_rows; row < end; ++row) SplitRow(args, row, rows);
  });
  return rows;
}

void MatMul::Run(const MatMulArgs& args, ThreadPool& pool) {
  if (args.rows == 0) return;
  const int64_t panels = NumPanels(args.w.rows);
  const int64_t row_blocks = CeilDiv(args.rows, kBlockRows);
  const int64_t block_rows = CeilDiv(args.rows, row_blocks);
  const int64_t multiplies = args.rows * args.w.rows * args.w.cols;
  const int64_t tasks_per_thread = std::clamp<int64_t>(
      multiplies / (kTaskMultiplies * pool.num_threads()), 1, kMaxTasksPerThread);
  const int64_t task_panels = CeilDiv(panels * row_blocks, tasks_per_thread * pool.num_threads());
  const int64_t panel_blocks = CeilDiv(panels, task_panels);
  const bool quantized = IsQuantized(args.w.type);
  const DigitRows digits = quantized ? SplitRows(args, pool) : DigitRows();
  pool.Run(row_blocks * panel_blocks, [&](int64_t task, int) {
    const int64_t row = task / panel_blocks * block_rows;
    const int64_t panel = task % panel_blocks * task_panels;
    const MatMulBlock block = {.row_begin = row,
                               .row_end = std::min<int64_t>(args.rows, row + block_rows),
                               .panel_begin = panel,
                               .panel_end = std::min(panels, panel + task_panels)};
    if (quantized) {
      MultiplyQuantized(args, digits, block);
    } else {
      HWY_DYNAMIC_DISPATCH(MatMulTask)(args, block);
    }
  });
}

}  // namespace everlong::cpu
#endif
