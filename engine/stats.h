// What the engine counts. Plain data: the engine knows nothing of how it is exported.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/fidelity.h"
#include "kernels/args.h"

namespace everlong {

// A histogram in Prometheus form: counts[i] observations in (bounds[i - 1], bounds[i]]; the last
// count has no upper bound.
struct Histogram {
  explicit Histogram(std::vector<double> upper_bounds);
  void Observe(double value);

  std::vector<double> bounds;
  std::vector<uint64_t> counts;  // [bounds.size() + 1], not cumulative
  double sum = 0.0;
};

// Device memory in bytes, by use.
struct MemoryUse {
  int64_t weights = 0;
  int64_t activations = 0;
  int64_t kv = 0;
  int64_t index = 0;
  int64_t selection = 0;
  int64_t other = 0;  // all else that is in use, where the device has memory of its own

  int64_t known() const { return weights + activations + kv + index + selection; }
};

// A consistent copy of everything the engine counts. Counters never decrease.
struct EngineStats {
  EngineStats();
  void ObserveFidelity(std::span<const LayerFidelity> layers);

  int64_t requests_running = 0;
  int64_t requests_waiting = 0;
  int64_t kv_pages_total = 0;
  int64_t kv_pages_used = 0;
  int64_t kv_page_bytes = 0;  // all layers
  MemoryUse memory;
  uint64_t prompt_tokens = 0;
  uint64_t output_tokens = 0;
  uint64_t preemptions = 0;
  double peak_prefill_rate = 0.0;      // tokens/s of the fastest full step; 0: too few to tell
  std::array<uint64_t, 3> finished{};  // requests by FinishReason of their last sample
  std::map<absl::StatusCode, uint64_t> failures;  // requests by code
  Histogram time_to_first_token_seconds;
  Histogram inter_token_latency_seconds;
  Histogram e2e_request_latency_seconds;
  Histogram request_queue_time_seconds;
  Histogram request_prefill_time_seconds;
  Histogram request_decode_time_seconds;
  Histogram step_seconds_prefill;  // steps with any prompt token
  Histogram step_seconds_decode;   // the others
  Histogram step_tokens_prefill;
  Histogram step_tokens_decode;
  Histogram attended_ratio;  // of finished requests: tokens read over tokens there, while decoding
  std::array<uint64_t, kMaxStages> stage_refreshes{};  // selector stages run for decoded tokens
  // [layers], empty before the first token is compared with dense attention.
  std::vector<Histogram> layer_recall;
  std::vector<Histogram> layer_error;
};

}  // namespace everlong
