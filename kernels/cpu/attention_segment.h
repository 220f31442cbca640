// Attention of some rows of a query block to one KV head, segment by segment.
//
// A segment is a fixed run of tiles of the key list. What it adds to a query is computed from
// nothing, tile by tile, and folded into what the earlier segments gave, in their order. So the
// result does not depend on which threads computed the segments, nor on which queries were computed
// together.
//
// Keys are cached unrotated. In the score of a query numbered 64 a + i and a key numbered 64 b + j
// the rotations reduce to R(64 (a - b)) R(i) on the query and R(j) on the key: the query is turned
// once per tile, and the key by an angle that depends on its slot alone.
#pragma once

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cpu/key_list.h"
#include "kernels/cpu/rope_table.h"
#include "kernels/cpu/step.h"

namespace everlong::cpu {

inline constexpr int64_t kSegmentTiles = 16;

// Rows are queries: [num_tokens][group], where group = q_heads / kv_heads. They and the values are
// padded to `width`, and so is each half of a key.
struct QueryRows {
  const AttentionArgs* args;
  const RopeTable* rope;
  const StepSequence* sequence;
  const QueryBlock* block;
  KeyList keys;  // up to the last row's own
  int64_t width;
  int32_t first_token;  // row of the step
  int32_t num_tokens;
  int32_t kv_head;
  int32_t group;

  int32_t num_rows() const { return num_tokens * group; }
  int64_t num_segments() const { return (keys.NumTiles() + kSegmentTiles - 1) / kSegmentTiles; }
  int64_t token(int64_t row) const { return first_token + static_cast<int32_t>(row) / group; }
  int64_t head(int64_t row) const { return int64_t{kv_head} * group + row % group; }
  int64_t position(int64_t row) const { return sequence->position(token(row)); }
};

// The softmax of rows over the keys so far (Milakov, Gimelshein: Online normalizer calculation for
// softmax, 2018): the largest score, the sum of weights relative to it, the weighted values.
struct SoftmaxState {
  float* max;     // [rows]
  float* sum;     // [rows]
  float* values;  // [rows][width]

  // In SoftmaxFloats(rows, width) floats of memory.
  static SoftmaxState In(float* memory, int64_t rows) {
    return {memory, memory + rows, memory + 2 * rows};
  }
};

constexpr int64_t SoftmaxFloats(int64_t rows, int64_t width) {
  return rows * (2 + width);
}

// Memory that one thread needs for `rows` rows or fewer.
int64_t AttentionScratchFloats(int64_t rows, int64_t width);

// Computes the rows' attention and writes it out.
void AttendWhole(const QueryRows& rows, float* scratch);

// Fills `state` with what one segment gives.
void AttendSegment(const QueryRows& rows, int64_t segment, float* scratch, SoftmaxState state);

// Folds the states of all segments, SoftmaxFloats apart from `states` on, into the first, and
// writes the rows' attention out.
void MergeSegments(const QueryRows& rows, float* states);

}  // namespace everlong::cpu
