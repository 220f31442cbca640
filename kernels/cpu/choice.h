// What the selectors share: the lists to choose, their query rows, and what a thread works with.
#pragma once

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/ranking.h"
#include "kernels/cpu/step.h"

namespace everlong::cpu {

// Cosines and sines of one position, computed in double.
struct Turn {
  std::vector<float> cos, sin;

  void Set(const Rope& rope, int64_t head_dim, int64_t position);
};

// One list to choose: a query block and the KV heads whose keys decide it together.
struct Choice {
  const QueryBlock* block;
  const SelectParams* params;
  const StepSequence* sequence;
  int64_t first_head;
  int64_t end_head;

  int64_t first_block() const { return block->num_sinks / kBlockTokens; }
  int64_t end_block() const { return block->window_begin / kBlockTokens; }
  int64_t num_candidates() const { return end_block() - first_block(); }
};

// What one thread works with.
struct SelectWorkspace {
  std::vector<float> rows;         // [num_rows][head_dim]
  std::vector<int64_t> positions;  // [num_rows]
  std::vector<float> near;         // columns of the rows, turned for left probes and ranges
  std::vector<float> far;          // for right probes
  std::vector<float> keys;
  std::vector<float> scores;
  std::vector<float> sums;
  std::vector<int64_t> lows;
  std::vector<int32_t> chunks, kept;
  Turn turn;  // of probed rows
  Ranking ranking;

  auto vectors() {
    return std::tie(rows, positions, near, far, keys, scores, sums, lows, chunks, kept, turn.cos,
                    turn.sin, ranking.counts, ranking.ties);
  }
};

// Whichever thread chooses next, it has room for what any of them has chosen.
void ShareRoom(std::vector<SelectWorkspace>& workspaces);

// Rows of one KV head's group, into w.rows and w.positions; pooled ones are means over aligned
// positions.
void LoadRows(const SelectArgs& args, const Choice& choice, int64_t head, bool pool,
              SelectWorkspace& w);

// out[d * width + column] is dimension d of the turned row.
void AppendColumn(const float* row, const Turn* turn, int64_t head_dim, int64_t width,
                  int64_t column, float* out);

// Ascending blocks, as the choice's list of all its heads.
void StoreList(const SelectArgs& args, const Choice& choice, int32_t list,
               std::span<const int32_t> blocks);

}  // namespace everlong::cpu
