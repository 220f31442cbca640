#include "engine/request_table.h"

#include <algorithm>
#include <utility>

namespace everlong {
namespace {

bool RanksBefore(const ActiveRequest* a, const ActiveRequest* b) {
  if (a->request.priority != b->request.priority) return a->request.priority > b->request.priority;
  return a->id < b->id;
}

}  // namespace

RequestTable::RequestTable(int32_t num_pages, int32_t num_slots) : pool_(num_pages) {
  for (int32_t slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

int64_t RequestTable::num_waiting() const {
  return std::count_if(by_rank_.begin(), by_rank_.end(),
                       [](const ActiveRequest* active) { return !active->started(); });
}

void RequestTable::Add(std::unique_ptr<ActiveRequest> active) {
  by_rank_.insert(std::upper_bound(by_rank_.begin(), by_rank_.end(), active.get(), RanksBefore),
                  active.get());
  const RequestId id = active->id;
  by_id_.emplace(id, std::move(active));
}

std::unique_ptr<ActiveRequest> RequestTable::Remove(RequestId id) {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return nullptr;
  std::unique_ptr<ActiveRequest> active = std::move(it->second);
  by_id_.erase(it);
  std::erase(by_rank_, active.get());
  for (const auto& sequence : active->samples) Vacate(*sequence);
  active->samples.clear();
  return active;
}

bool RequestTable::EndSample(const Sequence& sequence) {
  auto& samples = RequestOf(sequence).samples;
  const auto it = std::find_if(samples.begin(), samples.end(),
                               [&](const auto& sample) { return sample.get() == &sequence; });
  Vacate(**it);
  samples.erase(it);
  return samples.empty();
}

ActiveRequest& RequestTable::RequestOf(const Sequence& sequence) {
  return *by_id_.at(sequence.request_id);
}

std::vector<RequestId> RequestTable::All() const {
  return Expired(absl::InfiniteFuture());
}

std::vector<RequestId> RequestTable::Expired(absl::Time now) const {
  std::vector<RequestId> ids;
  for (const ActiveRequest* active : by_rank_) {
    if (active->request.deadline <= now) ids.push_back(active->id);
  }
  return ids;
}

void RequestTable::Fork() {
  for (ActiveRequest* active : by_rank_) {
    Sequence& first = *active->samples.front();
    if (first.forked || first.num_pending() > 0) continue;
    for (int32_t sample = 1; sample < active->request.num_samples; ++sample) {
      active->samples.push_back(
          std::make_unique<Sequence>(first, sample, everlong::Fork(first.session, pool_)));
    }
    first.forked = true;
  }
}

std::span<const SequenceView> RequestTable::Views() {
  views_.clear();
  sequences_.clear();
  for (const ActiveRequest* active : by_rank_) {
    const bool paused = active->sink->Backlogged();
    for (const auto& sequence : active->samples) {
      const Session& s = sequence->session;
      views_.push_back({.pending = sequence->num_pending(),
                        .later = s.num_pending() - sequence->num_pending(),
                        .stored = s.stored,
                        .own_pages = OwnPages(s, pool_),
                        .writes_shared_page = WritesSharedPage(s, pool_),
                        .holds_pages = !s.pages.empty(),
                        .running = sequence->running,
                        .paused = paused});
      sequences_.push_back(sequence.get());
    }
  }
  return views_;
}

bool RequestTable::Occupy(Sequence& sequence, int64_t num_tokens) {
  Extend(sequence.session, pool_, num_tokens, copies_);
  if (std::exchange(sequence.running, true)) return false;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  return true;
}

void RequestTable::Vacate(Sequence& sequence) {
  DropPages(sequence.session, pool_);
  if (std::exchange(sequence.running, false)) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

}  // namespace everlong
