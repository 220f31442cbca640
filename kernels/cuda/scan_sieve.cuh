// What the ranges of pages' keys promise the query rows, sixteen pages by eight rows at a time on
// tensor cores. In all of this, lane 4 g + t of a warp has pages g and g + 8 of its sixteen, and of
// the 64 dimensions of a span 16 t .. + 15.
#pragma once

#include "kernels/cuda/scan_tile.cuh"

namespace everlong::cuda::scan {

inline constexpr int kWarpPages = 16;

// A lane's part of one page's ranges for a KV head. kDim is the head's dimension, or 0: any.
template <int kDim>
struct PageRanges {
  static constexpr int kSpans = (kDim == 0 ? kMaxHeadDim : kDim) / kSpanDims;

  Words<4> codes[2][kSpans];  // of lows and highs
  float unit;

  __device__ void Load(const KeyIndex& index, int64_t page, int head) {
    const std::byte* of_page =
        static_cast<const std::byte*>(index.ranges) + page * index.RangePageBytes();
    const int dim = index.head_dim;
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const std::byte* from = of_page + (2 * head + high) * dim;
#pragma unroll
      for (int span = 0; span < kSpans; ++span) {
        const int first = kSpanDims * span + Lane() % 4 * 16;
        if constexpr (kDim != 0) {
          codes[high][span] = LoadOnce<4>(from + first);
        } else {
          for (int i = 0; i < 4; ++i) {
            const bool inside = first + 4 * i < dim;
            codes[high][span].w[i] = inside ? LoadOnce<1>(from + first + 4 * i).w[0] : 0;
          }
        }
      }
    }
    const auto exponent = static_cast<signed char>(of_page[2 * dim * index.kv_heads + head]);
    unit = __int_as_float((exponent + 127) << 23);
  }
};

// Of four bytes, those below 0 and zeros for others, and the other way round.
struct SignedBytes {
  uint32_t lower;
  uint32_t upper;

  __device__ explicit SignedBytes(uint32_t bytes) {
    const uint32_t negative = __byte_perm(bytes, 0, 0xBA98);  // each byte's sign, eight times
    lower = bytes & negative;
    upper = bytes & ~negative;
  }
};

// The most that pages promise any of a list's rows for one KV head: page g, page g + 8.
template <int kDim>
__device__ float2 Promises(const Scanning& s, const PageRanges<kDim> (&pages)[2], int64_t first_row,
                           int num_rows) {
  const int head_dim = kDim == 0 ? s.cache.head_dim : kDim;
  float2 best = {-INFINITY, -INFINITY};
#pragma unroll 1
  for (int row = 0; row < num_rows; row += kTileRows) {
    const TileRows tile = TileOf(s, first_row + row);
    int sums[4] = {};
#pragma unroll
    for (int span = 0; span < PageRanges<kDim>::kSpans; ++span) {
      if (kDim == 0 && kSpanDims * span >= head_dim) continue;
      const int8_t* bytes =
          tile.bytes + Lane() / 4 * s.byte_dims() + kSpanDims * span + Lane() % 4 * 16;
      const uint4 four = *reinterpret_cast<const uint4*>(bytes);
      const SignedBytes row_bytes[4] = {SignedBytes(four.x), SignedBytes(four.y),
                                        SignedBytes(four.z), SignedBytes(four.w)};
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const Words<4>& a = pages[0].codes[high][span];
        const Words<4>& b = pages[1].codes[high][span];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const uint32_t codes[4] = {a.w[i], b.w[i], a.w[i + 1], b.w[i + 1]};
          const SignedBytes& first = row_bytes[i];
          const SignedBytes& second = row_bytes[i + 1];
          MultiplyAddBytes(sums, codes, high == 0 ? first.lower : first.upper,
                           high == 0 ? second.lower : second.upper);
        }
      }
    }
    const float4 totals = *reinterpret_cast<const float4*>(tile.totals + 2 * (Lane() % 4));
    const auto promise = [&](int sum, float total, float row_scale, float unit) {
      const int centred = sum - kRangeZero * static_cast<int>(total);
      return static_cast<float>(centred) * (row_scale * unit);
    };
    best.x = fmaxf(best.x, fmaxf(promise(sums[0], totals.y, totals.x, pages[0].unit),
                                 promise(sums[1], totals.w, totals.z, pages[0].unit)));
    best.y = fmaxf(best.y, fmaxf(promise(sums[2], totals.y, totals.x, pages[1].unit),
                                 promise(sums[3], totals.w, totals.z, pages[1].unit)));
  }
#pragma unroll
  for (int lanes = 1; lanes <= 2; lanes *= 2) {
    best.x = fmaxf(best.x, __shfl_xor_sync(kAll, best.x, lanes));
    best.y = fmaxf(best.y, __shfl_xor_sync(kAll, best.y, lanes));
  }
  return best;
}

}  // namespace everlong::cuda::scan
