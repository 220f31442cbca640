// Which sequences get how many tokens in the next step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace everlong {

struct SchedulerLimits {
  int32_t max_batch_tokens = 0;  // >= max_running + kPageTokens
  int32_t max_running = 0;       // sequences
};

// A sequence as the scheduler sees it, best rank (priority, then arrival) first.
struct SequenceView {
  int64_t pending = 0;  // tokens that the next step may store, >= 1
  int64_t later = 0;    // tokens it has beyond them
  int64_t stored = 0;
  int64_t own_pages = 0;  // pages that preempting it would free: those no other sequence holds
  bool writes_shared_page = false;  // its next token costs one page more
  bool holds_pages = false;         // own or shared
  bool running = false;             // admitted
  bool paused = false;              // its reader is behind: gets no tokens
};

struct Schedule {
  std::vector<int64_t> tokens;     // [sequences]: this step's share, 0 for none
  std::vector<int32_t> preempted;  // indices that must give up their pages; they get none
};

// Decoding sequences (one pending token) come first. The budget that is left is shared evenly among
// the sequences that still read their prompt, so that a short prompt waits for at most one chunk of
// a long one; chunks end at page boundaries unless they end the pending tokens. A waiting sequence
// is admitted in rank order, once all its tokens fit beside what the running ones have yet to read.
// A sequence that needs a page where none is free preempts the worst-ranked one below it that holds
// pages; so the best-ranked always advances. A paused sequence keeps its pages and its place only
// while nobody else needs them: a slow reader delays nobody.
//
// Plans follow from what they are given alone; memory is kept between them.
class Scheduler {
 public:
  // Valid until the next call.
  const Schedule& Plan(std::span<const SequenceView> sequences, int64_t free_pages,
                       const SchedulerLimits& limits);

 private:
  void Admit();
  void ShareBudget();
  void ClaimPages();
  int32_t PreemptPaused();
  bool PreemptBelow(size_t i);
  void Preempt(size_t victim);

  std::span<const SequenceView> sequences_;
  SchedulerLimits limits_;
  int64_t free_pages_ = 0;
  std::vector<bool> running_;    // [sequences]
  std::vector<bool> preempted_;  // [sequences]
  std::vector<size_t> reading_;
  Schedule plan_;
};

}  // namespace everlong
