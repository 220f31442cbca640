#include "engine/stats.h"

#include <algorithm>
#include <utility>

namespace everlong {
namespace {

// Buckets as vLLM names them, so that dashboards carry over; first tokens of long prompts need
// more.
std::vector<double> FirstTokenBuckets() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
}

std::vector<double> TokenBuckets() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
          0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
}

std::vector<double> RequestBuckets() {
  return {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
}

std::vector<double> StepBuckets() {
  return {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
          0.05,   0.1,     0.25,   0.5,   1,      2.5,   5,    10};
}

std::vector<double> StepTokenBuckets() {
  return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
}

std::vector<double> RatioBuckets() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1};
}

std::vector<double> RecallBuckets() {
  return {0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1};
}

std::vector<double> ErrorBuckets() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1};
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds(std::move(upper_bounds)), counts(bounds.size() + 1, 0) {}

void Histogram::Observe(double value) {
  ++counts[std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin()];
  sum += value;
}

EngineStats::EngineStats()
    : time_to_first_token_seconds(FirstTokenBuckets()),
      inter_token_latency_seconds(TokenBuckets()),
      e2e_request_latency_seconds(RequestBuckets()),
      request_queue_time_seconds(RequestBuckets()),
      request_prefill_time_seconds(RequestBuckets()),
      request_decode_time_seconds(RequestBuckets()),
      step_seconds_prefill(StepBuckets()),
      step_seconds_decode(StepBuckets()),
      step_tokens_prefill(StepTokenBuckets()),
      step_tokens_decode(StepTokenBuckets()),
      attended_ratio(RatioBuckets()) {}

void EngineStats::ObserveFidelity(std::span<const LayerFidelity> layers) {
  if (layer_recall.empty()) {
    layer_recall.resize(layers.size(), Histogram(RecallBuckets()));
    layer_error.resize(layers.size(), Histogram(ErrorBuckets()));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    layer_recall[i].Observe(layers[i].recall);
    layer_error[i].Observe(layers[i].error);
  }
}

}  // namespace everlong
