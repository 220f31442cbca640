// Scores of the keys of an index page against the query rows of one selection, and what its ranges
// promise, compiled once per target.
#pragma once

#include <cstdint>

#include "kernels/kv_address.h"

namespace everlong::cpu {

// Query rows for the scan: bytes q ~ scale * byte. Sums are exact, so that a block's score depends
// on neither target nor thread.
struct ScanRows {
  const float* rows;    // [num_rows][head_dim], for the page's mean
  const int8_t* bytes;  // [num_rows][head_dim]
  // [num_rows][2][head_dim]: those below 0, with zeros for others, and those above 0.
  const int8_t* signed_bytes;
  const float* scales;    // [num_rows]
  const int32_t* totals;  // [num_rows], of the bytes
  int64_t num_rows;
  int64_t head_dim;  // a multiple of 4
};

// scores[8], one for each block of an index page's head: the best of their tokens over all rows.
// Meanwhile memory fetches `next`, another head of a page.
void ScanPage(const ScanRows& rows, const IndexHeadView& head, const IndexHeadView& next,
              int32_t bits, float* scores);

// The most that a page's head promises any row (SieveOf).
float PagePromise(const ScanRows& rows, const RangeView& ranges);

}  // namespace everlong::cpu
