// The best of many scores by radix selection: scores become keys, unsigned numbers in the same
// order, and histograms of the keys' digits, from the highest that differ down, find the least key
// that is chosen.
#pragma once

#include <cstdint>

#include "kernels/cuda/reduce.cuh"

namespace everlong::cuda {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int kDigitBits = 11;
inline constexpr int kDigits = 1 << kDigitBits;

// Never NaN's, and above 0.
__device__ inline uint32_t KeyOf(float score) {
  const auto bits = __float_as_int(score + 0.0f);  // -0 as 0
  return static_cast<uint32_t>(bits ^ (bits >> 31 | INT32_MIN));
}

// The keys above `key` are chosen, and of those equal to it the first `num_equal`.
struct Bar {
  uint32_t key;
  int num_equal;
};

template <int kThreads>
struct Room {
  alignas(16) uint32_t histogram[kDigits];
  int warp_sums[2][kThreads / 32];
  uint32_t any;
  uint32_t all;
  int digit;
  int above;  // keys with higher digits
  int here;   // with this one
};

// Of the warps before this one, and of all threads where each gives its own.
template <int kThreads>
__device__ int SumOfWarpsBefore(const int (&warp_sums)[kThreads / 32]) {
  const auto warp = static_cast<int>(threadIdx.x) / 32;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  return __reduce_add_sync(kAllLanes, lane < warp ? warp_sums[lane] : 0);
}

// Which digit the key has that is number `wanted`, from 1, from the top.
template <int kThreads>
__device__ void FindDigit(int wanted, Room<kThreads>& room) {
  constexpr int kOwn = kDigits / kThreads;
  struct alignas(kOwn >= 4 ? 16 : 4 * kOwn) Own {
    uint32_t counts[kOwn];
  };
  const auto warp = static_cast<int>(threadIdx.x) / 32;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const int first = kDigits - (static_cast<int>(threadIdx.x) + 1) * kOwn;
  const Own own = *reinterpret_cast<const Own*>(room.histogram + first);
  int sum = 0;
  for (const uint32_t count : own.counts) sum += static_cast<int>(count);
  const int inclusive = InclusiveSum(sum);
  if (lane == 31) room.warp_sums[0][warp] = inclusive;
  __syncthreads();
  int above = SumOfWarpsBefore<kThreads>(room.warp_sums[0]) + inclusive - sum;
#pragma unroll
  for (int i = kOwn - 1; i >= 0; --i) {
    const auto here = static_cast<int>(own.counts[i]);
    if (above < wanted && wanted <= above + here) {
      room.digit = first + i;
      room.above = above;
      room.here = here;
    }
    above += here;
  }
  __syncthreads();
}

// What a CTA's keys have in common: the bits that some have, and those that all have.
template <int kThreads>
struct KeyBits {
  uint32_t any = 0;
  uint32_t all = ~0u;
  int count = 0;

  __device__ void Add(uint32_t key) {
    any |= key;
    all &= key;
    ++count;
  }
  // Those of all threads' keys.
  __device__ void Reduce(Room<kThreads>& room) {
    if (threadIdx.x == 0) {
      room.any = 0;
      room.all = ~0u;
      room.here = 0;
    }
    __syncthreads();
    any = __reduce_or_sync(kAllLanes, any);
    all = __reduce_and_sync(kAllLanes, all);
    count = __reduce_add_sync(kAllLanes, count);
    if (threadIdx.x % 32 == 0) {
      atomicOr(&room.any, any);
      atomicAnd(&room.all, all);
      atomicAdd(&room.here, count);
    }
    __syncthreads();
    any = room.any;
    all = room.all;
    count = room.here;
    __syncthreads();
  }
};

// Which of the keys key_at(i), i < count, are the `keep` best, for keep > 0; keys of 0 are none.
// The bar may be too low by up to `slack` keys.
template <int kThreads, class KeyAt>
__device__ Bar FindBar(const KeyAt& key_at, int count, int keep, int slack, Room<kThreads>& room) {
  KeyBits<kThreads> bits;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t key = key_at(i);
    if (key != 0) bits.Add(key);
  }
  bits.Reduce(room);
  if (bits.count <= keep) return {0, 0};
  // Digits begin with the first bit in which keys differ: so they fall into many bins.
  const uint32_t differing = bits.any & ~bits.all;
  const int num_bits = 32 - __clz(differing);
  uint32_t known = num_bits == 32 ? 0 : ~0u << num_bits;  // its bits that are right
  uint32_t found = bits.all & known;
  int wanted = keep;  // of the keys with those bits
  for (int shift = max(num_bits - kDigitBits, 0); true; shift = max(shift - kDigitBits, 0)) {
    const uint32_t digit = (kDigits - 1u) << shift & ~known;
    for (int i = threadIdx.x; i < kDigits; i += kThreads) room.histogram[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t key = key_at(i);
      if (key != 0 && ((key ^ found) & known) == 0) {
        atomicAdd(room.histogram + ((key & digit) >> shift), 1u);
      }
    }
    __syncthreads();
    FindDigit<kThreads>(wanted, room);
    found |= static_cast<uint32_t>(room.digit) << shift;
    known |= digit;
    wanted -= room.above;
    if (room.here - wanted <= (shift == 0 ? 0 : slack)) return {found - 1, 0};
    if (shift == 0) return {found, wanted};
  }
}

}  // namespace everlong::cuda
