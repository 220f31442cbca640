#include "kernels/cpu/scan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/check.h"
#include "kernels/cpu/probing.h"

namespace everlong::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
// Pages that one task scans or takes promises of: enough to outlast its start.
constexpr int64_t kScanPages = 128;
constexpr int64_t kPromisePages = 1024;
// By so many pages a scan fetches ahead.
constexpr int64_t kPagesAhead = 2;

IndexHeadView IndexHead(const SelectArgs& args, const Choice& choice, int64_t head, int64_t page) {
  return IndexHeadAt(args.index, args.layer, choice.sequence->pages[page], head);
}

// Room that lasts for the scans that follow for a while.
template <class T>
void Grow(std::vector<T>& memory, int64_t size) {
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size + size / 2);
}

}  // namespace

void Scan::Clear() {
  lists_.clear();
  num_scores_ = 0;
  num_promises_ = 0;
  num_kept_ = 0;
}

void Scan::Add(const Choice& choice) {
  const PageSpan pages = CandidatePages(*choice.block);
  const Sieve sieve = SieveOf(*choice.params, pages.end - pages.begin);
  lists_.push_back({.choice = choice,
                    .pages = pages,
                    .sieve = sieve,
                    .first_score = num_scores_,
                    .first_promise = num_promises_,
                    .first_kept = num_kept_});
  num_scores_ += choice.num_candidates();
  num_promises_ += sieve.num_groups == 0 ? 0 : pages.end - pages.begin;
  num_kept_ += int64_t{sieve.num_groups} * sieve.keep;
}

void Scan::Run(const SelectArgs& args, std::vector<SelectWorkspace>& workspaces, ThreadPool& pool) {
  Reserve(args, workspaces);
  const auto num_lists = static_cast<int64_t>(lists_.size());
  pool.Run(num_lists, [&](int64_t i, int thread) {
    const Choice& choice = lists_[i].choice;
    for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
      Prepare(args, choice, head, queries_[i * args.cache.kv_heads + head], workspaces[thread]);
    }
  });
  if (num_promises_ > 0) {
    TakePromises(args, pool);
    pool.Run(num_lists, [&](int64_t i, int thread) { Sift(lists_[i], workspaces[thread]); });
  }
  ScanPages(args, pool);
  pool.Run(num_lists,
           [&](int64_t i, int thread) { ChooseBlocks(args, lists_[i], workspaces[thread]); });
}

// Ahead of what grows with the context: each thread can hold the largest list of the step.
void Scan::Reserve(const SelectArgs& args, std::vector<SelectWorkspace>& workspaces) {
  Grow(queries_, static_cast<int64_t>(lists_.size()) * args.cache.kv_heads);
  Grow(scores_, num_scores_);
  Grow(promises_, num_promises_);
  Grow(kept_, num_kept_);
  int64_t candidates = 0;
  for (const Scanned& s : lists_) candidates = std::max(candidates, s.choice.num_candidates());
  for (SelectWorkspace& w : workspaces) {
    if (static_cast<int64_t>(w.scores.capacity()) < candidates) {
      w.scores.reserve(candidates + candidates / 2);
      w.ranking.Reserve(candidates + candidates / 2);
    }
    w.sums.reserve(kSieveGroupPages);
  }
}

ScanRows Scan::Query::view(int64_t head_dim) const {
  return {.rows = rows.data(),
          .bytes = bytes.data(),
          .signed_bytes = signed_bytes.data(),
          .scales = scales.data(),
          .totals = totals.data(),
          .num_rows = static_cast<int64_t>(scales.size()),
          .head_dim = head_dim};
}

// Turns the rows and rounds them to bytes: their error is small beside that of the codes.
void Scan::Prepare(const SelectArgs& args, const Choice& choice, int64_t head, Query& query,
                   SelectWorkspace& w) const {
  const int64_t dim = args.cache.head_dim;
  LoadRows(args, choice, head, false, w);
  const auto num_rows = static_cast<int64_t>(w.positions.size());
  if (args.rotate) query.turn.Set(args.rope, dim, choice.params->distance);
  query.rows.resize(num_rows * dim);
  query.bytes.resize(num_rows * dim);
  query.signed_bytes.resize(2 * num_rows * dim);
  query.scales.resize(num_rows);
  query.totals.assign(num_rows, 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row = query.rows.data() + r * dim;
    AppendColumn(w.rows.data() + r * dim, args.rotate ? &query.turn : nullptr, dim, 1, 0, row);
    float largest = 0.0f;
    for (int64_t i = 0; i < dim; ++i) largest = std::max(largest, std::abs(row[i]));
    const float scale = largest / 127.0f;
    query.scales[r] = scale;
    int8_t* lower = query.signed_bytes.data() + 2 * r * dim;
    for (int64_t i = 0; i < dim; ++i) {
      const float nearest = scale == 0.0f ? 0.0f : std::nearbyint(row[i] / scale);
      const auto byte = static_cast<int8_t>(std::min(std::max(-127.0f, nearest), 127.0f));
      query.bytes[r * dim + i] = byte;
      lower[i] = std::min<int8_t>(byte, 0);
      lower[dim + i] = std::max<int8_t>(byte, 0);
      query.totals[r] += byte;
    }
  }
}

// Calls visit(first list, end list) for the lists of each query block.
template <class Visit>
void Scan::ForEachBlock(const Visit& visit) const {
  for (size_t i = 0, next = 0; i < lists_.size(); i = next) {
    while (next < lists_.size() && lists_[next].choice.block == lists_[i].choice.block) ++next;
    visit(i, next);
  }
}

// Cuts `range`.
void Scan::AppendRanges(Range range, int64_t range_pages) {
  const int64_t end = range.end;
  range.last = end - 1;
  for (; range.begin < end; range.begin = range.end) {
    range.end = std::min(range.begin + range_pages, end);
    ranges_.push_back(range);
  }
}

// Page by page for all heads that choose from it: what belongs to a page lies side by side.
void Scan::TakePromises(const SelectArgs& args, ThreadPool& pool) {
  ranges_.clear();
  ForEachBlock([&](size_t first, size_t end) {
    const PageSpan& pages = lists_[first].pages;
    if (lists_[first].sieve.num_groups == 0) return;
    AppendRanges({first, end, nullptr, pages.begin, pages.end, 0}, kPromisePages);
  });
  pool.Run(static_cast<int64_t>(ranges_.size()), [&](int64_t i, int) {
    const Range& range = ranges_[i];
    for (int64_t page = range.begin; page < range.end; ++page) {
      for (size_t list = range.first_list; list < range.end_list; ++list) {
        const Scanned& s = lists_[list];
        promises_[s.first_promise + page - s.pages.begin] = Promise(args, list, page);
      }
    }
  });
}

float Scan::Promise(const SelectArgs& args, size_t list, int64_t page) const {
  const Choice& choice = lists_[list].choice;
  float best = kNone;
  for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
    const RangeView ranges = RangesAt(args.index, args.layer, choice.sequence->pages[page], head);
    best =
        std::max(best, PagePromise(QueriesOf(args, list)[head].view(args.cache.head_dim), ranges));
  }
  return best;
}

// The pages that the sieve leaves, and no scores for all others.
void Scan::Sift(const Scanned& s, SelectWorkspace& w) {
  if (s.sieve.num_groups == 0) return;
  std::fill_n(scores_.data() + s.first_score, s.choice.num_candidates(), kNone);
  int32_t* kept = kept_.data() + s.first_kept;
  const float* promises = promises_.data() + s.first_promise;
  const int64_t num_pages = s.pages.end - s.pages.begin;
  for (int64_t group = 0; group < s.sieve.num_groups; ++group) {
    w.sums.clear();
    for (int64_t i = group; i < num_pages; i += s.sieve.num_groups) w.sums.push_back(promises[i]);
    Best(w.sums, s.sieve.keep, w.ranking, w.kept);
    for (const int32_t i : w.kept) {
      *kept++ = static_cast<int32_t>(s.pages.begin + group) + i * s.sieve.num_groups;
    }
  }
}

void Scan::ScanPages(const SelectArgs& args, ThreadPool& pool) {
  ranges_.clear();
  ForEachBlock([&](size_t first, size_t end) {
    const Scanned& block = lists_[first];
    if (block.sieve.num_groups == 0) {
      AppendRanges({first, end, nullptr, block.pages.begin, block.pages.end, 0}, kScanPages);
      return;
    }
    for (size_t i = first; i < end; ++i) {
      const Scanned& s = lists_[i];
      const int64_t num_kept = int64_t{s.sieve.num_groups} * s.sieve.keep;
      AppendRanges({i, i + 1, kept_.data() + s.first_kept, 0, num_kept, 0}, kScanPages);
    }
  });
  pool.Run(static_cast<int64_t>(ranges_.size()), [&](int64_t i, int) {
    const Range& range = ranges_[i];
    const auto page_at = [&](int64_t at) {
      at = std::min(at, range.last);
      return range.pages == nullptr ? at : range.pages[at];
    };
    for (int64_t at = range.begin; at < range.end; ++at) {
      for (size_t list = range.first_list; list < range.end_list; ++list) {
        ScanOnePage(args, list, page_at(at), page_at(at + kPagesAhead));
      }
    }
  });
}

void Scan::ScanOnePage(const SelectArgs& args, size_t list, int64_t page, int64_t next) {
  const Choice& choice = lists_[list].choice;
  float blocks[kPageBlocks];
  std::fill_n(blocks, kPageBlocks, kNone);
  for (int64_t head = choice.first_head; head < choice.end_head; ++head) {
    float best[kPageBlocks];
    ScanPage(QueriesOf(args, list)[head].view(args.cache.head_dim),
             IndexHead(args, choice, head, page), IndexHead(args, choice, head, next),
             args.index.bits, best);
    for (int64_t b = 0; b < kPageBlocks; ++b) blocks[b] = std::max(blocks[b], best[b]);
  }
  float* scores = scores_.data() + lists_[list].first_score;
  const int64_t begin = std::max(page * kPageBlocks, choice.first_block());
  const int64_t end = std::min((page + 1) * kPageBlocks, choice.end_block());
  for (int64_t b = begin; b < end; ++b) {
    scores[b - choice.first_block()] = blocks[b - page * kPageBlocks];
  }
}

void Scan::ChooseBlocks(const SelectArgs& args, const Scanned& s, SelectWorkspace& w) {
  const Choice& choice = s.choice;
  const SelectParams& params = *choice.params;
  std::span<float> scores(scores_.data() + s.first_score, choice.num_candidates());
  const auto first = static_cast<int32_t>(choice.first_block());
  if (params.rerank > 1) {
    Best(scores, int64_t{params.keep_blocks} * params.rerank, w.ranking, w.kept);
    for (int32_t& b : w.kept) b += first;
    ScoreBlocks(args, choice, w);
    std::fill(scores.begin(), scores.end(), kNone);
    for (size_t i = 0; i < w.kept.size(); ++i) scores[w.kept[i] - first] = w.sums[i];
  }
  Dilate(scores, params.dilation, w.scores);
  Best(w.scores, params.keep_blocks, w.ranking, w.kept);
  for (int32_t& b : w.kept) b += first;
  StoreList(args, choice, kFinalList, w.kept);
}

}  // namespace everlong::cpu
