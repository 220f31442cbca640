// Reductions over the threads of a block.
#pragma once

#include <cstring>

namespace everlong::cuda {

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

// All threads' values under a commutative `combine`, in the same order always; every thread gets
// the result. All threads of a block of a power of two of warps call it.
template <int kThreads, class T, class Combine>
__device__ T ReduceBlock(T value, const Combine& combine) {
  constexpr int kWarps = kThreads / 32;
  static_assert((kWarps & (kWarps - 1)) == 0 && kWarps <= 32);
  __shared__ T parts[kWarps];
  for (int lanes = 16; lanes > 0; lanes /= 2) value = combine(value, ShuffleXor(value, lanes));
  __syncthreads();  // an earlier result may still be read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[threadIdx.x % kWarps];
  for (int lanes = kWarps / 2; lanes > 0; lanes /= 2) {
    value = combine(value, ShuffleXor(value, lanes));
  }
  return value;
}

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

}  // namespace everlong::cuda
