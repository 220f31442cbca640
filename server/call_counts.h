// What is counted of Generate calls outside the engine.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"

namespace everlong {

// Thread-safe.
class CallCounts {
 public:
  static constexpr int kNumCodes = 17;  // OK to UNAUTHENTICATED

  void OnBegin() { ++open_; }
  void OnEnd() { --open_; }
  // Calls that gRPC is not done with.
  int64_t open() const { return open_; }

  // For a call that ends before the engine takes it.
  void OnRefusal(absl::StatusCode code) { ++refused_[static_cast<size_t>(code)]; }
  uint64_t refused(absl::StatusCode code) const { return refused_[static_cast<size_t>(code)]; }

 private:
  std::atomic<int64_t> open_{0};
  std::array<std::atomic<uint64_t>, kNumCodes> refused_{};
};

}  // namespace everlong
