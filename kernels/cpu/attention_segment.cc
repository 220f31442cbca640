#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_segment.cc"
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/attention_segment.h"
#include "kernels/cpu/attention_tile-inl.h"
#include "kernels/cpu/key_tile-inl.h"
#include "kernels/kv_address.h"

#ifndef EVERLONG_KERNELS_CPU_ATTENTION_SCRATCH_
#define EVERLONG_KERNELS_CPU_ATTENTION_SCRATCH_
namespace everlong::cpu {

// Rows whose queries are turned, scored and weighted at a time.
inline constexpr int64_t kScoreRows = 8;
// From here on it pays to widen a tile's values to f32 once.
inline constexpr int64_t kWidenRows = 16;

// What a thread keeps beside the tile at hand. Queries are scaled.
struct AttentionScratch {
  float* near_queries;  // [rows][width], turned by their number modulo kTileTokens
  float* far_queries;   // [rows][width], turned for the keys before the window
  float* turned;        // [kScoreRows][width], near queries, turned as far as the tile
  float* scores;        // [kScoreRows][kTileTokens], later the weights
  float* keys;          // [width][kTileTokens], turned
  float* values;        // [kTileTokens][width]
  float* angles;        // cosines and sines, [2][width / 2][kTileTokens]
  float* padded;        // keys and values padded to width: at most f32, [2][kTileTokens][width]
  SoftmaxState segment;
  SoftmaxState total;

  AttentionScratch(float* memory, int64_t rows, int64_t width) {
    const auto take = [&](int64_t floats) {
      float* taken = memory;
      memory += floats;
      return taken;
    };
    near_queries = take(rows * width);
    far_queries = take(rows * width);
    turned = take(kScoreRows * width);
    scores = take(kScoreRows * kTileTokens);
    keys = take(width * kTileTokens);
    values = take(kTileTokens * width);
    angles = take(width * kTileTokens);
    padded = take(2 * kTileTokens * width);
    segment = SoftmaxState::In(take(SoftmaxFloats(rows, width)), rows);
    total = SoftmaxState::In(take(SoftmaxFloats(rows, width)), rows);
  }

  static int64_t Floats(int64_t rows, int64_t width) {
    return (2 * rows + kScoreRows) * width + kScoreRows * kTileTokens + 5 * kTileTokens * width +
           2 * SoftmaxFloats(rows, width);
  }
};

}  // namespace everlong::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// Turns pairs (x[i], x[width / 2 + i]) by the angles of cos and sin. `out` may be `x`.
HWY_INLINE void Turn(const float* x, const float* cos, const float* sin, int64_t width,
                     float* out) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec a = F32::Load(x + i);
    const Vec b = F32::Load(x + half + i);
    const Vec c = F32::Load(cos + i);
    const Vec s = F32::Load(sin + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), F32Tag(), out + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), F32Tag(), out + half + i);
  }
}

// Turns rows by the angles of the positions that position(row) gives; by_page: of their page,
// else by those of the offset in it.
template <class Position>
void TurnRows(const QueryRows& rows, bool by_page, const Position& position, float* queries) {
  for (int64_t r = 0; r < rows.num_rows(); ++r) {
    const int64_t p = position(r);
    float* q = queries + r * rows.width;
    if (by_page) {
      Turn(q, rows.rope->PageCos(p / kTileTokens), rows.rope->PageSin(p / kTileTokens), rows.width,
           q);
    } else {
      Turn(q, rows.rope->OffsetCos(p % kTileTokens), rows.rope->OffsetSin(p % kTileTokens),
           rows.width, q);
    }
  }
}

void LoadQueries(const QueryRows& rows, const AttentionScratch& scratch) {
  const AttentionArgs& args = *rows.args;
  const int64_t dim = args.cache.head_dim;
  const int64_t half = dim / 2;
  const float factor = args.rotate ? args.scale * args.rope.scale * args.rope.scale : args.scale;
  std::fill_n(scratch.near_queries, rows.num_rows() * rows.width, 0.0f);
  for (int64_t r = 0; r < rows.num_rows(); ++r) {
    const float* q =
        static_cast<const float*>(args.q) + rows.token(r) * args.q_stride + rows.head(r) * dim;
    float* out = scratch.near_queries + r * rows.width;
    for (int64_t i = 0; i < half; ++i) {
      out[i] = q[i] * factor;
      out[rows.width / 2 + i] = q[half + i] * factor;
    }
  }
  std::copy_n(scratch.near_queries, rows.num_rows() * rows.width, scratch.far_queries);
  if (!args.rotate) return;
  const auto number = [&](int64_t r) { return rows.keys.Number(rows.position(r)); };
  TurnRows(rows, false, number, scratch.near_queries);
  if (rows.keys.FarTiles() == 0) return;
  const auto far = [&](int64_t r) {
    return rows.block->positions == Positions::kClipped ? rows.block->clip_distance
                                                        : rows.position(r);
  };
  TurnRows(rows, false, far, scratch.far_queries);
  TurnRows(rows, true, far, scratch.far_queries);
}

int64_t SlotsOf(const QueryRows& rows, int64_t tile) {
  return rows.keys.SlotsSeen(tile, rows.position(rows.num_rows() - 1));
}

// The last block that is seen stands for those behind it.
template <class Format>
TileView<Format> FindTile(const QueryRows& rows, int64_t tile) {
  const KvCache& cache = rows.args->cache;
  TileView<Format> view = {{}, cache.head_dim, int64_t{kBlockTokens} * cache.head_dim};
  const int64_t last = (SlotsOf(rows, tile) - 1) / kBlockTokens;
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    const int64_t block = rows.keys.Block(tile, HWY_MIN(b, last));
    view.blocks[b] = reinterpret_cast<const typename Format::Element*>(
        KeyAddress(cache, rows.args->layer, rows.sequence->pages[block / kPageBlocks], rows.kv_head,
                   block % kPageBlocks * kBlockTokens));
  }
  return view;
}

// Copies a tile of narrower heads, padded to `width`.
template <class Format>
TileView<Format> PadTile(const TileView<Format>& tile, int64_t width, float* memory) {
  using Element = typename Format::Element;
  auto* to = reinterpret_cast<Element*>(memory);
  std::fill_n(to, 2 * kTileTokens * width, Element{0});
  TileView<Format> padded = {{}, width, kBlockTokens * width};
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    padded.blocks[b] = to + b * 2 * kBlockTokens * width;
  }
  const int64_t half = tile.width / 2;
  for (int64_t slot = 0; slot < kTileTokens; ++slot) {
    auto* key = const_cast<Element*>(padded.Key(slot));
    std::copy_n(tile.Key(slot), half, key);
    std::copy_n(tile.Key(slot) + half, half, key + width / 2);
    std::copy_n(tile.Value(slot), tile.width, key + padded.value_offset);
  }
  return padded;
}

// Angles of the true positions of a tile's slots: R(64 a + i) = R(64 a) R(i).
SlotAngles TrueAngles(const QueryRows& rows, int64_t tile, int64_t num_slots, float* out) {
  const hn::CappedTag<float, kBlockTokens> d;
  const int64_t half = rows.width / 2;
  float* out_sin = out + half * kTileTokens;
  for (int64_t b = 0; b * kBlockTokens < num_slots; ++b) {
    const int64_t block = rows.keys.Block(tile, b);
    const float* page_cos = rows.rope->PageCos(block / kPageBlocks);
    const float* page_sin = rows.rope->PageSin(block / kPageBlocks);
    for (int64_t i = 0; i < half; ++i) {
      const auto cos = hn::Set(d, page_cos[i]);
      const auto sin = hn::Set(d, page_sin[i]);
      for (int64_t slot = 0; slot < kBlockTokens; slot += hn::MaxLanes(d)) {
        const int64_t from = i * kTileTokens + block % kPageBlocks * kBlockTokens + slot;
        const int64_t to = i * kTileTokens + b * kBlockTokens + slot;
        const auto c = hn::LoadU(d, rows.rope->CosByFrequency() + from);
        const auto s = hn::LoadU(d, rows.rope->SinByFrequency() + from);
        hn::StoreU(hn::NegMulAdd(sin, s, hn::Mul(cos, c)), d, out + to);
        hn::StoreU(hn::MulAdd(sin, c, hn::Mul(cos, s)), d, out_sin + to);
      }
    }
  }
  return {out, out_sin};
}

// How far the keys of a tile are turned.
SlotAngles KeyAngles(const QueryRows& rows, int64_t tile, int64_t num_slots, float* memory) {
  if (!rows.args->rotate) return {};
  if (tile >= rows.keys.FarTiles()) {
    return {rows.rope->CosByFrequency(), rows.rope->SinByFrequency()};
  }
  if (rows.block->positions == Positions::kClipped) return {};
  return TrueAngles(rows, tile, num_slots, memory);
}

// The queries of rows [row, row + count) as the keys of a tile are to see them.
const float* QueriesFor(const QueryRows& rows, const AttentionScratch& scratch, int64_t tile,
                        int64_t row, int64_t count) {
  const int64_t numbered = tile - rows.keys.FarTiles();
  if (numbered < 0) return scratch.far_queries + row * rows.width;
  if (!rows.args->rotate) return scratch.near_queries + row * rows.width;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t distance = rows.keys.Number(rows.position(row + r)) / kTileTokens - numbered;
    Turn(scratch.near_queries + (row + r) * rows.width, rows.rope->PageCos(distance),
         rows.rope->PageSin(distance), rows.width, scratch.turned + r * rows.width);
  }
  return scratch.turned;
}

// Adds a tile to the states of rows [row, row + count). The later a row, the more slots it sees.
template <class Format>
void AttendRows(const QueryRows& rows, const AttentionScratch& scratch,
                const TileView<Format>& view, int64_t tile, int64_t row, int64_t count,
                TileFetcher& fetcher, SoftmaxState state) {
  const int64_t width = rows.width;
  const auto slots_seen = [&](int64_t r) {
    return rows.keys.SlotsSeen(tile, rows.position(row + r));
  };
  const float* queries = QueriesFor(rows, scratch, tile, row, count);
  RunTiles(ScoreTiles{queries, scratch.keys, width, &fetcher, scratch.scores}, count,
           NumPanels(slots_seen(count - 1)) * kPairsPerPanel);
  // By how much the values so far are to be scaled.
  float keep[HWY_MAX(kScoreRows, kLanes)] = {};
  for (int64_t r = 0; r < count; ++r) {
    float& max = state.max[row + r];
    const float old = max;
    max = HWY_MAX(max, LargestScore(scratch.scores + r * kTileTokens, slots_seen(r)));
    keep[r] = old - max;
  }
  for (int64_t r = 0; r < count; r += kLanes) {
    hn::StoreU(Exp(F32::Load(keep + r)), F32Tag(), keep + r);
  }
  for (int64_t r = 0; r < count; ++r) {
    float& sum = state.sum[row + r];
    sum = sum * keep[r] + Weigh(scratch.scores + r * kTileTokens, state.max[row + r]);
  }
  const int64_t seen_by_all = slots_seen(0);
  const int64_t pairs = NumPanels(width) * kPairsPerPanel;
  float* out = state.values + row * width;
  RunTiles(ValueTiles<Format>{scratch.scores, keep, view, 0, seen_by_all, width, &fetcher, out},
           count, pairs);
  // What a row does not see must not touch it, not even with weight 0: it may be infinite.
  for (int64_t r = 0; r < count; ++r) {
    if (slots_seen(r) == seen_by_all) continue;
    const float one = 1.0f;
    RunTiles(ValueTiles<Format>{scratch.scores + r * kTileTokens, &one, view, seen_by_all,
                                slots_seen(r), width, &fetcher, out + r * width},
             1, pairs);
  }
}

template <class Format>
void AttendTile(const QueryRows& rows, const AttentionScratch& scratch, int64_t tile,
                TileView<Format> view, TileFetcher& fetcher, SoftmaxState state) {
  const int64_t num_rows = rows.num_rows();
  const int64_t num_slots = SlotsOf(rows, tile);
  int64_t first_row = 0;
  while (rows.keys.SlotsSeen(tile, rows.position(first_row)) <= 0) first_row += rows.group;
  if (view.width < rows.width) view = PadTile(view, rows.width, scratch.padded);
  LoadKeys(view, num_slots, KeyAngles(rows, tile, num_slots, scratch.angles), scratch.keys);
  const auto attend = [&](const auto& values) {
    for (int64_t row = first_row; row < num_rows; row += kScoreRows) {
      AttendRows(rows, scratch, values, tile, row, HWY_MIN(kScoreRows, num_rows - row), fetcher,
                 state);
    }
  };
  if (num_rows - first_row < kWidenRows) return attend(view);
  attend(WidenValues(view, num_slots, scratch.values));
}

template <class Format>
void AttendTiles(const QueryRows& rows, const AttentionScratch& scratch, int64_t segment,
                 SoftmaxState state) {
  std::fill_n(state.max, rows.num_rows(), -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, rows.num_rows(), 0.0f);
  std::fill_n(state.values, rows.num_rows() * rows.width, 0.0f);
  const int64_t begin = segment * kSegmentTiles;
  const int64_t end = HWY_MIN(rows.keys.NumTiles(), begin + kSegmentTiles);
  auto view = FindTile<Format>(rows, begin);
  for (int64_t tile = begin; tile < end; ++tile) {
    const bool last = tile + 1 == end;
    const auto next = last ? view : FindTile<Format>(rows, tile + 1);
    TileFetcher fetcher = last ? TileFetcher() : TileFetcher(next);
    AttendTile<Format>(rows, scratch, tile, view, fetcher, state);
    view = next;
  }
}

void AttendLoaded(const QueryRows& rows, const AttentionScratch& scratch, int64_t segment,
                  SoftmaxState state) {
  switch (rows.args->cache.type) {
    case DType::kF32:
      return AttendTiles<F32>(rows, scratch, segment, state);
    case DType::kF16:
      return AttendTiles<F16>(rows, scratch, segment, state);
    case DType::kBF16:
      return AttendTiles<BF16>(rows, scratch, segment, state);
    default:
      EVERLONG_CHECK(rows.args->cache.type < DType::kF8);
  }
}

// A row that sees nothing of a segment has max -infinity there and stays as it is.
void Fold(SoftmaxState from, int64_t rows, int64_t width, SoftmaxState into) {
  for (int64_t r = 0; r < rows; ++r) {
    const float max = HWY_MAX(into.max[r], from.max[r]);
    const float keep = ExpOne(into.max[r] - max);
    const float add = ExpOne(from.max[r] - max);
    into.max[r] = max;
    into.sum[r] = into.sum[r] * keep + from.sum[r] * add;
    for (int64_t i = r * width; i < (r + 1) * width; i += kLanes) {
      const Vec kept = hn::Mul(F32::Load(into.values + i), hn::Set(F32Tag(), keep));
      const Vec added = hn::MulAdd(F32::Load(from.values + i), hn::Set(F32Tag(), add), kept);
      hn::StoreU(added, F32Tag(), into.values + i);
    }
  }
}

void WriteOut(const QueryRows& rows, SoftmaxState state) {
  const AttentionArgs& args = *rows.args;
  const int64_t dim = args.cache.head_dim;
  for (int64_t r = 0; r < rows.num_rows(); ++r) {
    const int64_t result = rows.token(r) * args.q_heads + rows.head(r);
    float* out = static_cast<float*>(args.out) + result * dim;
    const float* values = state.values + r * rows.width;
    for (int64_t i = 0; i < dim; ++i) out[i] = values[i] / state.sum[r];
    if (args.lse != nullptr) args.lse[result] = state.max[r] + std::log(state.sum[r]);
  }
}

void WholeTask(const QueryRows& rows, float* memory) {
  const AttentionScratch scratch(memory, rows.num_rows(), rows.width);
  LoadQueries(rows, scratch);
  AttendLoaded(rows, scratch, 0, scratch.total);
  for (int64_t segment = 1; segment < rows.num_segments(); ++segment) {
    AttendLoaded(rows, scratch, segment, scratch.segment);
    Fold(scratch.segment, rows.num_rows(), rows.width, scratch.total);
  }
  WriteOut(rows, scratch.total);
}

void SegmentTask(const QueryRows& rows, int64_t segment, float* memory, SoftmaxState state) {
  const AttentionScratch scratch(memory, rows.num_rows(), rows.width);
  LoadQueries(rows, scratch);
  AttendLoaded(rows, scratch, segment, state);
}

void MergeTask(const QueryRows& rows, float* states) {
  const int64_t num_rows = rows.num_rows();
  const int64_t stride = SoftmaxFloats(num_rows, rows.width);
  const SoftmaxState total = SoftmaxState::In(states, num_rows);
  for (int64_t segment = 1; segment < rows.num_segments(); ++segment) {
    Fold(SoftmaxState::In(states + segment * stride, num_rows), num_rows, rows.width, total);
  }
  WriteOut(rows, total);
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace everlong::cpu {

HWY_EXPORT(WholeTask);
HWY_EXPORT(SegmentTask);
HWY_EXPORT(MergeTask);

int64_t AttentionScratchFloats(int64_t rows, int64_t width) {
  return AttentionScratch::Floats(rows, width);
}

void AttendWhole(const QueryRows& rows, float* scratch) {
  HWY_DYNAMIC_DISPATCH(WholeTask)(rows, scratch);
}

void AttendSegment(const QueryRows& rows, int64_t segment, float* scratch, SoftmaxState state) {
  HWY_DYNAMIC_DISPATCH(SegmentTask)(rows, segment, scratch, state);
}

void MergeSegments(const QueryRows& rows, float* states) {
  HWY_DYNAMIC_DISPATCH(MergeTask)(rows, states);
}

}  // namespace everlong::cpu
#endif
