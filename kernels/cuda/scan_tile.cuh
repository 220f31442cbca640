// Scores of a page's keys from the key index, in integers on tensor cores: its 64 keys, whose codes
// are bytes once their neighbours in a word are masked, by eight query rows rounded to bytes.
//
// In all of this, lane 4 g + t of a warp multiplies keys as mma.m16n8k32 (PTX ISA) has them: of the
// 64 dimensions of a span, those of four groups of four from group 4 t on; of a group, words
// kBits * g .. + kBits - 1. A word has 8 / kBits fields, thus a lane eight keys, called slots:
// slot s is field s / kBits of word kBits * g + s % kBits.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/kv_chunk.cuh"
#include "kernels/cuda/scanning.h"

namespace everlong::cuda::scan {

inline constexpr unsigned kAll = 0xFFFFFFFFu;
inline constexpr int kSlots = 8;

__device__ inline int Lane() {
  return static_cast<int>(threadIdx.x) % 32;
}

// c += a b, of unsigned and signed bytes.
__device__ inline void MultiplyAddBytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// kBits f16 numbers.
template <int kBits>
struct Halves {
  uint32_t words[(kBits + 1) / 2];

  __device__ explicit Halves(const std::byte* from) {
    if constexpr (kBits == 1) {
      words[0] = __ldg(reinterpret_cast<const uint16_t*>(from));
    } else {
      const auto loaded = LoadOnce<kBits / 2>(from);
      for (int i = 0; i < kBits / 2; ++i) words[i] = loaded.w[i];
    }
  }
  Halves() = default;

  __device__ float operator[](int i) const {
    const auto bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    return __half2float(__ushort_as_half(bits));
  }
};

// A lane's part of a KV head of an index page. kDim is the head's dimension, or 0: any.
template <int kDim, int kBits>
struct PageHead {
  static constexpr int kSpans = (kDim == 0 ? kMaxHeadDim : kDim) / kSpanDims;
  static constexpr int kFields = 8 / kBits;

  Words<kBits> codes[kSpans][4];
  Halves<kBits> scales[kFields];
  uint32_t mean[kSpans];  // f16, of dimensions 64 span + 2 lane and the next

  __device__ void Load(const KeyIndex& index, const std::byte* head) {
    const int group = Lane() / 4;
    const int first = Lane() % 4 * 4;
    const std::byte* from = head + first * index.GroupBytes() + group * (4 * kBits);
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int number = 16 * span + i;
        if (kDim == 0 && 4 * (first + number) >= index.head_dim) {
          codes[span][i] = {};
        } else {
          codes[span][i] = LoadOnce<kBits>(from + number * (32 * kBits));
        }
      }
    }
    const std::byte* of_scales = head + index.CodeBytes();
#pragma unroll
    for (int field = 0; field < kFields; ++field) {
      scales[field] = Halves<kBits>(of_scales + 2 * kBits * (8 * field + group));
    }
    const std::byte* of_mean = of_scales + 2 * kPageTokens;
#pragma unroll
    for (int span = 0; span < kSpans; ++span) {
      const int dim = kSpanDims * span + 2 * Lane();
      mean[span] = kDim == 0 && dim >= index.head_dim ? 0 : LoadOnce<1>(of_mean + 2 * dim).w[0];
    }
  }

  // Four codes of a slot, times FieldUnit.
  __device__ static uint32_t Codes(const Words<kBits>& words, int slot, uint32_t mask) {
    return words.w[slot % kBits] & mask << (slot / kBits * kBits);
  }
  __device__ static float FieldUnit(int slot) {
    return static_cast<float>(1 << (slot / kBits * kBits));
  }
};

// Eight query rows of a list.
struct TileRows {
  const float* rows;     // [8][head_dim]
  const int8_t* bytes;   // [8][byte_dims]
  const float2* totals;  // [8]
};

__device__ inline TileRows TileOf(const Scanning& s, int64_t row) {
  return {s.rows + row * s.cache.head_dim, s.bytes + row * s.byte_dims(), s.totals + row};
}

// Products of the page's mean with rows 2 t and 2 t + 1.
template <int kDim, int kBits>
__device__ float2 MeanProducts(const PageHead<kDim, kBits>& page, const TileRows& tile,
                               int head_dim) {
  float sums[kTileRows] = {};
#pragma unroll
  for (int span = 0; span < page.kSpans; ++span) {
    const int dim = kSpanDims * span + 2 * Lane();
    if (kDim == 0 && dim >= head_dim) continue;
    const float2 mean = __half22float2(reinterpret_cast<const __half2&>(page.mean[span]));
#pragma unroll
    for (int row = 0; row < kTileRows; ++row) {
      const float2 q = *reinterpret_cast<const float2*>(tile.rows + row * head_dim + dim);
      sums[row] = fmaf(mean.y, q.y, fmaf(mean.x, q.x, sums[row]));
    }
  }
  // Rows are shared out among the lanes whose parts are added up: lanes 4 g .. end with row g.
#pragma unroll
  for (int lanes = 16; lanes >= 4; lanes /= 2) {
    const bool upper = (Lane() & lanes) != 0;
#pragma unroll
    for (int i = 0; i < lanes / 4; ++i) {
      const float kept = upper ? sums[i + lanes / 4] : sums[i];
      const float given = upper ? sums[i] : sums[i + lanes / 4];
      sums[i] = kept + __shfl_xor_sync(kAll, given, lanes);
    }
  }
  float sum = sums[0];
  sum += __shfl_xor_sync(kAll, sum, 2);
  sum += __shfl_xor_sync(kAll, sum, 1);
  const int even = Lane() % 4 * 8;
  return {__shfl_sync(kAll, sum, even), __shfl_sync(kAll, sum, even + 4)};
}

// Raises best[field] to the best score that a tile's rows have with the lane's keys.
template <int kDim, int kBits>
__device__ void ScoreTile(const PageHead<kDim, kBits>& page, const TileRows& tile, int head_dim,
                          int byte_dims, float (&best)[8 / kBits]) {
  constexpr float kMiddle = ((1 << kBits) - 1) / 2.0f;
  const float2 means = MeanProducts(page, tile, head_dim);
  // Opaque, so that codes are masked anew for every tile: more registers would not be worth it.
  uint32_t mask = 0x01010101u * ((1u << kBits) - 1);
  asm volatile("" : "+r"(mask));
  int sums[kSlots / 2][4] = {};
#pragma unroll
  for (int span = 0; span < page.kSpans; ++span) {
    if (kDim == 0 && kSpanDims * span >= head_dim) continue;
    const int8_t* bytes = tile.bytes + Lane() / 4 * byte_dims + kSpanDims * span + Lane() % 4 * 16;
    const uint4 row = *reinterpret_cast<const uint4*>(bytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<kBits>& first = page.codes[span][2 * half];
      const Words<kBits>& second = page.codes[span][2 * half + 1];
#pragma unroll
      for (int pair = 0; pair < kSlots / 2; ++pair) {
        const uint32_t keys[4] = {
            page.Codes(first, 2 * pair, mask), page.Codes(first, 2 * pair + 1, mask),
            page.Codes(second, 2 * pair, mask), page.Codes(second, 2 * pair + 1, mask)};
        MultiplyAddBytes(sums[pair], keys, half == 0 ? row.x : row.z, half == 0 ? row.y : row.w);
      }
    }
  }
  const float4 totals = *reinterpret_cast<const float4*>(tile.totals + 2 * (Lane() % 4));
  const float centres[2] = {kMiddle * totals.y, kMiddle * totals.w};
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const float scale = page.scales[slot / kBits][slot % kBits];
    const auto score = [&](int sum, float centre, float row_scale, float mean) {
      const float centred = fmaf(static_cast<float>(sum), 1.0f / page.FieldUnit(slot), -centre);
      return fmaf(centred, scale * row_scale, mean);
    };
    const int(&sum)[4] = sums[slot / 2];
    const float even = score(sum[slot % 2 * 2], centres[0], totals.x, means.x);
    const float odd = score(sum[slot % 2 * 2 + 1], centres[1], totals.z, means.y);
    best[slot / kBits] = fmaxf(best[slot / kBits], fmaxf(even, odd));
  }
}

}  // namespace everlong::cuda::scan
