// Included before Highway by the files that it compiles once per target. The targets are SSSE3
// (what CMakeLists.txt requires of x86), AVX2, AVX-512 and NEON. Left out are those whose vectors
// have no size at compile time, which tiles in registers need, and SSE4, which would gain nothing.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SCALAR | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
