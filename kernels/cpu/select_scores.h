// Scores of keys against the query rows of one selection: the arithmetic of Select, compiled once
// per target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace everlong::cpu {

// Query rows of one KV head side by side: [head_dim][width], where width is num_rows rounded up to
// kRowUnit and the columns behind num_rows repeat the last row.
inline constexpr int64_t kRowUnit = 16;
inline constexpr int64_t kMaxScanDim = 512;

struct RowColumns {
  const float* data;
  int64_t head_dim;
  int64_t width;
};

// scores[i] = max over rows of q . keys[i]; keys is [num_keys][head_dim].
void ScoreKeys(RowColumns rows, const float* keys, int64_t num_keys, float* scores);

// Widens one stored key, and turns it by cos and sin [head_dim / 2] where they are not null.
void LoadKey(const std::byte* from, DType type, int64_t head_dim, const float* cos,
             const float* sin, float* out);

// Query rows for the scan: bytes q ~ scale * byte. Sums are exact, so that a block's score depends
// on neither target nor thread.
struct ScanRows {
  const float* rows;      // [num_rows][head_dim], for the page's mean
  const int8_t* bytes;    // [num_rows][head_dim]
  const float* scales;    // [num_rows]
  const int32_t* totals;  // [num_rows], of the bytes
  int64_t num_rows;
  int64_t head_dim;
};

// Raises scores[8], one for each block of an index page's head, to the best of their tokens over
// all rows. `codes` is memory for 64 * head_dim bytes.
void ScanPage(const ScanRows& rows, const std::byte* head, int32_t bits, uint8_t* codes,
              float* scores);

}  // namespace everlong::cpu
