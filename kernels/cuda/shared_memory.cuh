// Shared memory by its address in that space: copies to it that threads need not wait for, and
// matrices from it (PTX ISA, cp.async and ldmatrix).
#pragma once

#include <cstdint>

namespace everlong::cuda {

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 4, 8 or 16 bytes from global memory, kFrom bytes from an address to kTo from another; zeros if
// they do not `exist`, and nothing is read.
template <int kBytes, int kTo = 0, int kFrom = 0>
__device__ inline void CopyAsync(uint32_t to, const void* from, bool exist = true) {
  const int read = exist ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(to),
                 "l"(from), "r"(read), "n"(kTo), "n"(kFrom)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0 + %4], [%1 + %5], %2, %3;" ::"r"(to),
                 "l"(from), "n"(kBytes), "r"(read), "n"(kTo), "n"(kFrom)
                 : "memory");
  }
}

// Ends a group of the thread's copies, which may be empty.
__device__ inline void EndCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all groups of the thread's copies but the last `kPending` have arrived, for this thread.
template <int kPending>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements, of which lane 8 i + j gives the address of row j of
// matrix i: lane 4 g + t gets row g, columns 2 t and 2 t + 1 of each.
__device__ inline void LoadMatrices(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row));
}

// The same of the transposed matrices.
__device__ inline void LoadTransposed(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row));
}

}  // namespace everlong::cuda
