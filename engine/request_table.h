// The requests that the engine works on, in the order of their rank, and what their sequences hold.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/active_request.h"
#include "engine/kv/page_pool.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/session.h"

namespace everlong {

// Engine thread only. Rank: priority, then arrival, then sample. Sequences hold KV pages and, while
// they run, a slot for their selections; what leaves the table holds neither.
class RequestTable {
 public:
  RequestTable(int32_t num_pages, int32_t num_slots);

  bool empty() const { return by_id_.empty(); }
  int64_t num_waiting() const;  // requests that were never scheduled
  int32_t pages_used() const { return pool_.num_pages() - pool_.num_free(); }
  int32_t pages_free() const { return pool_.num_free(); }

  // Takes over a request with one sequence.
  void Add(std::unique_ptr<ActiveRequest> active);
  // Null where there is none, or no longer.
  std::unique_ptr<ActiveRequest> Remove(RequestId id);
  // Ends one output. True: it was the last one of its request, which has yet to be removed.
  bool EndSample(const Sequence& sequence);
  ActiveRequest& RequestOf(const Sequence& sequence);
  std::vector<RequestId> All() const;
  std::vector<RequestId> Expired(absl::Time now) const;

  // Splits requests of several samples, whose prompt is stored but for its last token.
  void Fork();

  // All sequences in rank order, as the scheduler sees them. Valid, as sequence(i) of view i is,
  // until a request comes or goes or a sample does.
  std::span<const SequenceView> Views();
  Sequence& sequence(size_t i) { return *sequences_[i]; }

  // Pages for its next tokens, which must be free, and a slot. True: it had none, and runs now.
  bool Occupy(Sequence& sequence, int64_t num_tokens);
  // Gives back pages and slot; the tokens stay.
  void Vacate(Sequence& sequence);

  // Pages to be copied before the pages that Occupy gave are written.
  std::span<const PageCopy> copies() const { return copies_; }
  void ReleaseCopied() { everlong::ReleaseCopied(pool_, copies_); }

 private:
  PagePool pool_;
  std::vector<int32_t> free_slots_;
  std::vector<PageCopy> copies_;
  std::map<RequestId, std::unique_ptr<ActiveRequest>> by_id_;
  std::vector<ActiveRequest*> by_rank_;
  std::vector<SequenceView> views_;
  std::vector<Sequence*> sequences_;  // of views_
};

}  // namespace everlong
