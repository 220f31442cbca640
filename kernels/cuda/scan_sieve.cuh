// What the ranges of pages' keys promise the query rows, sixteen pages by eight rows at a time on
// tensor cores. In all of this, lane 4 g + t of a warp has pages g and g + 8 of its sixteen, and of
// the 64 dimensions of a span 16 t .. + 15.
#pragma once

#include "kernels/cuda/scan_tile.cuh"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::scan {

inline constexpr int kWarpPages = 16;

// Ranges of a group's pages for a KV head in shared memory, where they arrive while other pages are
// scanned. Exponents come with those of fifteen other heads.
template <int kDim>
struct StagedRanges {
  static constexpr int kDims = kDim == 0 ? kMaxHeadDim : kDim;
  static constexpr int kPadding = 16;  // so that rows of lanes do not share banks

  alignas(16) std::byte codes[kSieveGroupPages][2 * kDims + kPadding];
  alignas(16) std::byte exponents[kSieveGroupPages][16];

  // Of the pages ids[first + i * stride], i < count. Ends a group of copies.
  template <int kThreads>
  __device__ void Copy(const KeyIndex& index, const int32_t* ids, int stride, int count, int head) {
    const int dim = kDim == 0 ? index.head_dim : kDim;
    const int chunks = 2 * dim / kChunkBytes + 1;
    for (int i = threadIdx.x; i < count * chunks; i += kThreads) {
      const int page = i / chunks;
      const int chunk = i % chunks;
      const std::byte* from =
          static_cast<const std::byte*>(index.ranges) + ids[page * stride] * index.RangePageBytes();
      if (chunk + 1 == chunks) {
        const int offset = 2 * dim * index.kv_heads + head / 16 * 16;
        CopyAsync<16>(SharedAddress(exponents[page]), from + offset);
      } else {
        CopyAsync<kChunkBytes>(SharedAddress(codes[page] + chunk * kChunkBytes),
                               from + 2 * dim * head + chunk * kChunkBytes);
      }
    }
    EndCopies();
  }

 private:
  static constexpr int kChunkBytes = kDim == 0 ? 8 : 16;
};

// A lane's part of one page's ranges. kDim is the head's dimension, or 0: any.
template <int kDim>
struct PageRanges {
  static constexpr int kSpans = (kDim == 0 ? kMaxHeadDim : kDim) / kSpanDims;

  Words<4> codes[2][kSpans];  // of lows and highs
  float unit;

  __device__ PageRanges(const StagedRanges<kDim>& staged, int page, int head, int dim) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const std::byte* from = staged.codes[page] + high * dim;
#pragma unroll
      for (int span = 0; span < kSpans; ++span) {
        const int first = kSpanDims * span + Lane() % 4 * 16;
        if constexpr (kDim != 0) {
          codes[high][span] = *reinterpret_cast<const Words<4>*>(from + first);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const auto* word = reinterpret_cast<const uint32_t*>(from + first + 4 * i);
            codes[high][span].w[i] = first + 4 * i < dim ? *word : 0;
          }
        }
      }
    }
    const auto exponent = static_cast<signed char>(staged.exponents[page][head % 16]);
    unit = __int_as_float((exponent + 127) << 23);
  }
};

// Of four bytes, those below 0 and zeros for others, and the other way round.
struct SignedBytes {
  uint32_t lower;
  uint32_t upper;

  __device__ explicit SignedBytes(uint32_t bytes) {
    uint32_t negative;  // each byte's sign, eight times, which __byte_perm cannot tell
    asm("prmt.b32 %0, %1, 0, 0xBA98;" : "=r"(negative) : "r"(bytes));
    lower = bytes & negative;
    upper = bytes & ~negative;
  }
};

// The most that pages promise any of a list's rows for one KV head: lower has page g, upper page g
// + 8.
template <int kDim>
__device__ float2 Promises(const Scanning& s, const PageRanges<kDim>& lower,
                           const PageRanges<kDim>& upper, int64_t first_row, int num_rows) {
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
        const Words<4>& a = lower.codes[high][span];
        const Words<4>& b = upper.codes[high][span];
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
    best.x = fmaxf(best.x, fmaxf(promise(sums[0], totals.y, totals.x, lower.unit),
                                 promise(sums[1], totals.w, totals.z, lower.unit)));
    best.y = fmaxf(best.y, fmaxf(promise(sums[2], totals.y, totals.x, upper.unit),
                                 promise(sums[3], totals.w, totals.z, upper.unit)));
  }
#pragma unroll
  for (int lanes = 1; lanes <= 2; lanes *= 2) {
    best.x = fmaxf(best.x, __shfl_xor_sync(kAll, best.x, lanes));
    best.y = fmaxf(best.y, __shfl_xor_sync(kAll, best.y, lanes));
  }
  return best;
}

}  // namespace everlong::cuda::scan
