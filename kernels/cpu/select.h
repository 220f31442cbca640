#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/scan_page.h"
#include "kernels/cpu/select_scores.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

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
  int64_t first_score = 0;  // kScan: of its candidates, in Select's scores

  int64_t first_block() const { return block->num_sinks / kBlockTokens; }
  int64_t end_block() const { return block->window_begin / kBlockTokens; }
  int64_t end_page() const { return (end_block() + kPageBlocks - 1) / kPageBlocks; }
  int64_t num_candidates() const { return end_block() - first_block(); }
};

// Memory for finding the best of many scores.
struct Ranking {
  std::vector<int32_t> counts;  // by upper bits
  std::vector<uint64_t> ties;
};

// Divides the selections of a step among threads: prompt blocks one by one, scans by ranges of
// pages. Keeps its memory between calls.
class Select {
 public:
  void Run(const SelectArgs& args, const Step& step, ThreadPool& pool);

 private:
  // What one thread works with.
  struct Workspace {
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
  };
  // The query rows of a scan and one of its heads.
  struct ScanQuery {
    Turn turn;
    std::vector<float> rows;
    std::vector<int8_t> bytes;
    std::vector<float> scales;
    std::vector<int32_t> totals;

    ScanRows view(int64_t head_dim) const;
  };
  class Probing;

  static void Cut(std::span<const int32_t> chunks, int64_t from, int64_t to, int64_t end,
                  std::vector<int32_t>& pieces);
  static void Chunks(const SelectArgs& args, const Choice& choice, int32_t s, Workspace& w);
  void PlanChoices(const SelectArgs& args, const Step& step);
  void ReserveForScans(const SelectArgs& args);
  void PrepareChunkTurns(const SelectArgs& args);
  void Scan(const SelectArgs& args, ThreadPool& pool);
  void PrepareScan(const SelectArgs& args, const Choice& choice, int64_t head, ScanQuery& query,
                   Workspace& w);
  void ScanOnePage(const SelectArgs& args, const Choice& choice, const ScanQuery* queries,
                   int64_t page, int64_t next);
  void ChooseScanned(const SelectArgs& args, const Choice& choice, Workspace& w);
  void Store(const SelectArgs& args, const Choice& choice, int32_t list,
             std::span<const int32_t> blocks) const;

  std::vector<Choice> probed_;
  std::vector<Choice> scanned_;
  std::vector<ScanQuery> queries_;  // [scanned][heads]
  std::vector<float> scores_;
  std::vector<Turn> chunk_turns_;      // by chunk number
  std::vector<float> chunk_inv_freq_;  // what they were made with
  std::vector<Workspace> workspaces_;  // [threads]
};

}  // namespace everlong::cpu
