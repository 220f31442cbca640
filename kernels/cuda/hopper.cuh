// What only GPUs of compute capability 9.0 have, in code for sm_90a (PTX ISA, "wgmma", "mbarrier",
// "setmaxnreg"): products whose operands come from shared memory, which a warpgroup of four warps
// starts and later waits for, and barriers in shared memory.
//
// In shared memory a matrix of 16-bit elements lies in panels of 64 columns, row after row of 128
// bytes; in a row, chunk c of eight elements is where chunk c ^ (row % 8) would be.
#pragma once

#include <cstdint>

#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::hopper {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 2 * kPanelColumns;
inline constexpr int kWarpgroupThreads = 128;

// Where a panel has a chunk of eight elements.
__device__ inline int ChunkOffset(int row, int chunk) {
  return row * kPanelRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Operands as tensor cores see them: the lower half of a descriptor of what is at a shared address.
// `panel_bytes`: from one panel to the next, for those that are read along their rows.
__device__ inline uint32_t Operand(uint32_t address, int panel_bytes) {
  return static_cast<uint32_t>(panel_bytes) >> 4 << 16 | address >> 4;
}
// The same, so many bytes further.
__device__ inline uint32_t Advance(uint32_t operand, int bytes) {
  return operand + static_cast<uint32_t>(bytes >> 4);
}
__device__ inline uint64_t Descriptor(uint32_t operand) {
  constexpr uint32_t kSwizzled128 = 1u << 30;
  constexpr uint32_t kEightRows = 8 * kPanelRowBytes >> 4;
  return uint64_t{kSwizzled128 | kEightRows} << 32 | operand;
}

// Sixteen columns of a [64][16], from shared memory or spread over the warpgroup's registers as
// mma.cuh has it, 16 rows to a warp. c likewise: elements 4 n to 4 n + 3 of a lane are those of
// columns [8 n, 8 n + 8).
#define EVERLONG_8(c, i)                                                                      \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define EVERLONG_32(c, i) \
  EVERLONG_8(c, i), EVERLONG_8(c, i + 8), EVERLONG_8(c, i + 16), EVERLONG_8(c, i + 24)

// c = a b^T or, if kAdd, c += a b^T; b has 64 rows.
template <bool kAdd>
__device__ inline void Multiply(float (&c)[32], uint32_t a, uint32_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, %34, 1, 1, 0, 0;"
      : EVERLONG_32(c, 0)
      : "l"(Descriptor(a)), "l"(Descriptor(b)), "n"(kAdd ? 1 : 0));
}

// c += a b; b has 16 rows, in one panel or two.
__device__ inline void MultiplyRows(float (&c)[32], const uint32_t (&a)[4], uint32_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : EVERLONG_32(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(Descriptor(b)));
}
__device__ inline void MultiplyRows(float (&c)[64], const uint32_t (&a)[4], uint32_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : EVERLONG_32(c, 0), EVERLONG_32(c, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(Descriptor(b)));
}
#undef EVERLONG_32
#undef EVERLONG_8

// Keeps the compiler from moving what is done with registers across this point.
template <int kCount>
__device__ inline void Pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ inline void Pin(uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}
template <int kRows, int kCount>
__device__ inline void Pin(uint32_t (&x)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) Pin(x[i]);
}

// Before products that use `registers`, which something else has written or read.
template <class... Registers>
__device__ inline void BeginProducts(Registers&... registers) {
  (Pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends a group of products.
__device__ inline void EndProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all groups but the last `kPending` are done, which `registers` are of.
template <int kPending, class... Registers>
__device__ inline void AwaitProducts(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (Pin(registers), ...);
}

// Keeps `x`, which is not negative, from being computed later than here, as the assembler would
// have it to wait for products sooner: a store to `shared` that never happens depends on it.
__device__ inline void ComputeNow(float x, void* shared) {
  asm volatile(
      "{.reg .pred negative; setp.lt.f32 negative, %0, 0f00000000; "
      "@negative st.shared.f32 [%1], %0;}" ::"f"(x),
      "r"(SharedAddress(shared))
      : "memory");
}

// What the thread has written to shared memory, and what it copied there and waited for, is seen by
// products that start after a barrier.
__device__ inline void ShowToProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A barrier of `count` arrivals, in shared memory; its phases are numbered from 0.
__device__ inline void InitBarrier(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
}
__device__ inline void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// Until a phase has ended; the one before it must have.
__device__ inline void AwaitPhase(uint64_t* barrier, int phase) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(phase & 1)
      : "memory");
}
// The thread's warpgroup, as a number that the compiler knows to be the same for a warp.
__device__ inline int Warpgroup() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpgroupThreads, 0);
}

// Until all of the warpgroup are here; `number` from 1 on.
__device__ inline void MeetWarpgroup(int number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kWarpgroupThreads) : "memory");
}

// How many registers the threads of a warpgroup may use from now on.
template <int kCount>
__device__ inline void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace everlong::cuda::hopper
