// Reductions and sums over the threads of a warp and of a block. Each combines in the same order
// always. All threads of the warp or block call them.
#pragma once

#include <cstdint>
#include <cstring>

namespace everlong::cuda {

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class T>
__device__ T ShuffleXor(const T& value, int lanes) {
  static_assert(sizeof(T) % 4 == 0);
  int words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int& word : words) word = __shfl_xor_sync(0xFFFFFFFF, word, lanes);
  T other;
  memcpy(&other, words, sizeof(T));
  return other;
}

// The values of kLanes (a power of two) neighbouring lanes under a commutative `combine`, to each
// of them.
template <int kLanes = 32, class T, class Combine>
__device__ T ReduceWarp(T value, const Combine& combine) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    value = combine(value, ShuffleXor(value, lanes));
  }
  return value;
}

// The same for a block of a power of two of warps.
template <int kThreads, class T, class Combine>
__device__ T ReduceBlock(T value, const Combine& combine) {
  constexpr int kWarps = kThreads / 32;
  static_assert((kWarps & (kWarps - 1)) == 0 && kWarps <= 32);
  __shared__ T parts[kWarps];
  value = ReduceWarp(value, combine);
  __syncthreads();  // an earlier result may still be read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  return ReduceWarp<kWarps>(parts[threadIdx.x % kWarps], combine);
}

// Of the values of a warp's lanes up to the own one.
__device__ inline int32_t InclusiveSum(int32_t value) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int32_t other = __shfl_up_sync(0xFFFFFFFF, value, lanes);
    if (lane >= lanes) value += other;
  }
  return value;
}

}  // namespace everlong::cuda
