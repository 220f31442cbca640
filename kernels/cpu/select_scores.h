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

}  // namespace everlong::cpu
