#pragma once

#include <cstdint>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/choice.h"
#include "kernels/cpu/scan_page.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kv_address.h"

namespace everlong::cpu {

// Scans for some lists of a step: all at once, each pass shared among threads by ranges of pages.
// Keeps its memory between calls.
class Scan {
 public:
  void Clear();
  void Add(const Choice& choice);
  // Stores the lists of what was added.
  void Run(const SelectArgs& args, std::vector<SelectWorkspace>& workspaces, ThreadPool& pool);

 private:
  struct Scanned {
    Choice choice;
    PageSpan pages;
    Sieve sieve;
    int64_t first_score;    // of its candidates, in scores_
    int64_t first_promise;  // with a sieve: of its pages, in promises_
    int64_t first_kept;     // with a sieve: of those that it leaves, in kept_
  };
  // The query rows of a list and one of its heads.
  struct Query {
    Turn turn;
    std::vector<float> rows;
    std::vector<int8_t> bytes;
    std::vector<int8_t> signed_bytes;
    std::vector<float> scales;
    std::vector<int32_t> totals;

    ScanRows view(int64_t head_dim) const;
  };
  // Some pages of lists that read the same ones.
  struct Range {
    size_t first_list;
    size_t end_list;
    const int32_t* pages;  // null: all
    int64_t begin;
    int64_t end;
    int64_t last;  // that may be fetched early
  };

  void Reserve(const SelectArgs& args, std::vector<SelectWorkspace>& workspaces);
  void Prepare(const SelectArgs& args, const Choice& choice, int64_t head, Query& query,
               SelectWorkspace& w) const;
  template <class Visit>
  void ForEachBlock(const Visit& visit) const;
  void AppendRanges(Range range, int64_t range_pages);
  void TakePromises(const SelectArgs& args, ThreadPool& pool);
  float Promise(const SelectArgs& args, size_t list, int64_t page) const;
  void Sift(const Scanned& scanned, SelectWorkspace& w);
  void ScanPages(const SelectArgs& args, ThreadPool& pool);
  void ScanOnePage(const SelectArgs& args, size_t list, int64_t page, int64_t next);
  void ChooseBlocks(const SelectArgs& args, const Scanned& scanned, SelectWorkspace& w);
  const Query* QueriesOf(const SelectArgs& args, size_t list) const {
    return &queries_[list * args.cache.kv_heads];
  }

  std::vector<Scanned> lists_;  // those of a query block are neighbours
  std::vector<Query> queries_;  // [lists][heads]
  std::vector<Range> ranges_;
  std::vector<float> scores_;
  std::vector<float> promises_;
  std::vector<int32_t> kept_;
  int64_t num_scores_ = 0;
  int64_t num_promises_ = 0;
  int64_t num_kept_ = 0;
};

}  // namespace everlong::cpu
