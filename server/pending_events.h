// Events of one request that its reader has not taken yet, as messages. Those that arrive while
// others wait join them: Output events of a sample grow, of Prefill events the newest counts. So a
// slow reader gets fewer, larger messages.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "engine/request.h"
#include "everlong/v1/inference.pb.h"

namespace everlong {

// Not thread-safe.
class PendingEvents {
 public:
  // What the engine's events do not say of their request.
  struct Subject {
    std::string model;
    int64_t prompt_tokens = 0;
    int32_t num_samples = 1;
  };
  void SetSubject(Subject subject) { subject_ = std::move(subject); }

  void Add(Event event);

  // The next message to send. Nothing where there is none, or only progress through the prompt less
  // than a second after the last.
  std::optional<v1::GenerateEvent> Take(absl::Time now);

  // Size on the wire of all that waits.
  size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    v1::GenerateEvent event;
    size_t bytes;
  };

  void AddPrefill(const PrefillEvent& event);
  void Push(v1::GenerateEvent event);
  bool MayWait(const Entry& entry, absl::Time now) const;

  Subject subject_;
  std::deque<Entry> entries_;
  size_t bytes_ = 0;
  absl::Time last_prefill_ = absl::InfinitePast();
};

}  // namespace everlong
