#include "engine/scheduler.h"

#include <algorithm>

#include "engine/session.h"
#include "kernels/args.h"

namespace everlong {
namespace {

// Pages that `tokens` more tokens take beyond those a sequence already has.
int64_t NewPages(const SequenceView& s, int64_t tokens) {
  return PagesFor(s.stored + tokens) - PagesFor(s.stored) + (s.writes_shared_page ? 1 : 0);
}

// A chunk of about `share` tokens, within `budget`, that ends at a page boundary or with the
// pending tokens.
int64_t Chunk(const SequenceView& s, int64_t share, int64_t budget) {
  if (s.pending <= share) return s.pending;
  const int64_t to_boundary = kPageTokens - s.stored % kPageTokens;
  if (share >= to_boundary) return share - (share - to_boundary) % kPageTokens;
  const int64_t smallest = std::min(to_boundary, s.pending);
  return smallest <= budget ? smallest : 0;
}

}  // namespace

const Schedule& Scheduler::Plan(std::span<const SequenceView> sequences, int64_t free_pages,
                                const SchedulerLimits& limits) {
  sequences_ = sequences;
  limits_ = limits;
  free_pages_ = free_pages;
  running_.clear();
  for (const SequenceView& s : sequences) running_.push_back(s.running);
  preempted_.assign(sequences.size(), false);
  plan_.tokens.assign(sequences.size(), 0);
  plan_.preempted.clear();
  Admit();
  ShareBudget();
  ClaimPages();
  return plan_;
}

void Scheduler::Admit() {
  int64_t num_running = std::count(running_.begin(), running_.end(), true);
  int64_t spare = free_pages_;
  for (const SequenceView& s : sequences_) {
    if (s.running) spare -= NewPages(s, s.pending + s.later);
  }
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const SequenceView& s = sequences_[i];
    if (s.running || s.paused) continue;
    const int64_t needed = NewPages(s, s.pending + s.later);
    const auto full = [&] { return num_running == limits_.max_running || spare < needed; };
    while (full()) {
      const int32_t victim = PreemptPaused();
      if (victim < 0) break;
      --num_running;
      spare += sequences_[victim].own_pages;
    }
    if (full() && num_running > 0) break;
    spare -= needed;
    running_[i] = true;
    ++num_running;
  }
}

void Scheduler::ShareBudget() {
  int64_t budget = limits_.max_batch_tokens;
  reading_.clear();
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (!running_[i] || sequences_[i].paused) continue;
    if (sequences_[i].pending > 1) {
      reading_.push_back(i);
    } else {
      plan_.tokens[i] = 1;
      --budget;
    }
  }
  // Shortest first, so that what a short prompt leaves of its share goes to the longer ones.
  std::stable_sort(reading_.begin(), reading_.end(), [this](size_t a, size_t b) {
    return sequences_[a].pending < sequences_[b].pending;
  });
  for (size_t j = 0; j < reading_.size(); ++j) {
    const int64_t share = budget / static_cast<int64_t>(reading_.size() - j);
    const int64_t tokens = Chunk(sequences_[reading_[j]], share, budget);
    plan_.tokens[reading_[j]] = tokens;
    budget -= tokens;
  }
}

void Scheduler::ClaimPages() {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (plan_.tokens[i] == 0) continue;
    const int64_t needed = NewPages(sequences_[i], plan_.tokens[i]);
    while (free_pages_ < needed && PreemptBelow(i)) {
    }
    if (free_pages_ < needed) {
      plan_.tokens[i] = 0;
    } else {
      free_pages_ -= needed;
    }
  }
}

// Takes a running sequence whose reader is behind, the worst-ranked first. Returns it, or -1.
int32_t Scheduler::PreemptPaused() {
  for (size_t victim = sequences_.size(); victim-- > 0;) {
    if (!sequences_[victim].paused || !running_[victim]) continue;
    Preempt(victim);
    return static_cast<int32_t>(victim);
  }
  return -1;
}

// Frees the pages of a sequence that is paused or the worst-ranked one below i that holds any.
bool Scheduler::PreemptBelow(size_t i) {
  if (PreemptPaused() >= 0) return true;
  for (size_t victim = sequences_.size() - 1; victim > i; --victim) {
    if (!sequences_[victim].holds_pages || preempted_[victim]) continue;
    Preempt(victim);
    return true;
  }
  return false;
}

void Scheduler::Preempt(size_t victim) {
  preempted_[victim] = true;
  running_[victim] = false;
  plan_.tokens[victim] = 0;
  plan_.preempted.push_back(static_cast<int32_t>(victim));
  free_pages_ += sequences_[victim].own_pages;
}

}  // namespace everlong
