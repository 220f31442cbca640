#include "server/metrics.h"

#include <array>
#include <limits>
#include <string>
#include <utility>

namespace everlong {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Label = ClientMetric::Label;

MetricFamily Family(const std::string& name, const char* help, MetricType type,
                    std::vector<ClientMetric> metrics) {
  return {"everlong_" + name, help, type, std::move(metrics)};
}

ClientMetric CounterValue(double value, std::vector<Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = value;
  return metric;
}

ClientMetric GaugeValue(double value, std::vector<Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  return metric;
}

ClientMetric HistogramValue(const Histogram& histogram, std::vector<Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  uint64_t count = 0;
  for (size_t i = 0; i < histogram.counts.size(); ++i) {
    count += histogram.counts[i];
    const double bound =
        i < histogram.bounds.size() ? histogram.bounds[i] : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({count, bound});
  }
  metric.histogram.sample_count = count;
  metric.histogram.sample_sum = histogram.sum;
  return metric;
}

MetricFamily Counter(const char* name, const char* help, uint64_t value) {
  return Family(name, help, MetricType::Counter, {CounterValue(static_cast<double>(value))});
}

MetricFamily Gauge(const char* name, const char* help, int64_t value) {
  return Family(name, help, MetricType::Gauge, {GaugeValue(static_cast<double>(value))});
}

MetricFamily Distribution(const char* name, const char* help, const Histogram& histogram) {
  return Family(name, help, MetricType::Histogram, {HistogramValue(histogram)});
}

// One histogram of steps that read prompts, one of those that only decode.
MetricFamily ByPhase(const char* name, const char* help, const Histogram& prefill,
                     const Histogram& decode) {
  return Family(name, help, MetricType::Histogram,
                {HistogramValue(prefill, {{"phase", "prefill"}}),
                 HistogramValue(decode, {{"phase", "decode"}})});
}

MetricFamily Successes(const EngineStats& stats) {
  constexpr std::array kReasons = {"stop_token", "stop_string", "length"};  // as FinishReason
  static_assert(kReasons.size() == std::tuple_size_v<decltype(stats.finished)>);
  std::vector<ClientMetric> metrics;
  for (size_t i = 0; i < kReasons.size(); ++i) {
    metrics.push_back(
        CounterValue(static_cast<double>(stats.finished[i]), {{"finished_reason", kReasons[i]}}));
  }
  return Family("request_success_total", "Finished requests, by what ended their last output",
                MetricType::Counter, std::move(metrics));
}

// Every code an absl::Status can have is there from the start, so that rates see the first failure.
MetricFamily Failures(const EngineStats& stats, const CallCounts& counts) {
  std::vector<ClientMetric> metrics;
  for (int i = 1; i < CallCounts::kNumCodes; ++i) {
    const auto code = static_cast<absl::StatusCode>(i);
    const auto failed = stats.failures.find(code);
    const uint64_t count =
        counts.refused(code) + (failed == stats.failures.end() ? 0 : failed->second);
    metrics.push_back(
        CounterValue(static_cast<double>(count), {{"code", absl::StatusCodeToString(code)}}));
  }
  return Family("request_failure_total", "Failed requests, refused ones included, by status code",
                MetricType::Counter, std::move(metrics));
}

MetricFamily StageRefreshes(const EngineStats& stats) {
  std::vector<ClientMetric> metrics;
  for (size_t i = 0; i < stats.stage_refreshes.size(); ++i) {
    metrics.push_back(CounterValue(static_cast<double>(stats.stage_refreshes[i]),
                                   {{"stage", std::to_string(i + 1)}}));
  }
  return Family("hip_stage_refreshes_total", "Times a selector's stage ran for a decoded token",
                MetricType::Counter, std::move(metrics));
}

MetricFamily ByLayer(const char* name, const char* help, const std::vector<Histogram>& layers) {
  std::vector<ClientMetric> metrics;
  for (size_t i = 0; i < layers.size(); ++i) {
    metrics.push_back(HistogramValue(layers[i], {{"layer", std::to_string(i)}}));
  }
  return Family(name, help, MetricType::Histogram, std::move(metrics));
}

MetricFamily KvUsage(const EngineStats& stats) {
  const double used = static_cast<double>(stats.kv_pages_used);
  const double total = static_cast<double>(stats.kv_pages_total);
  return Family("kv_cache_usage_ratio", "Part of the KV cache in use, 0 to 1", MetricType::Gauge,
                {GaugeValue(total > 0 ? used / total : 0.0, {{"tier", "device"}})});
}

MetricFamily DeviceMemory(const MemoryUse& use) {
  const std::pair<const char*, int64_t> uses[] = {
      {"weights", use.weights}, {"activations", use.activations}, {"kv", use.kv},
      {"index", use.index},     {"selection", use.selection},     {"other", use.other}};
  std::vector<ClientMetric> metrics;
  for (const auto& [name, bytes] : uses) {
    metrics.push_back(GaugeValue(static_cast<double>(bytes), {{"use", name}}));
  }
  return Family("device_memory_bytes", "Memory of the device, by what it is reserved for",
                MetricType::Gauge, std::move(metrics));
}

}  // namespace

MetricFamily BuildInfo(const std::string& version) {
  return Family("build_info", "Always 1; the build is in the labels", MetricType::Gauge,
                {GaugeValue(1, {{"version", version}})});
}

std::vector<MetricFamily> ToMetrics(const EngineStats& s, const CallCounts& counts) {
  return {
      Gauge("num_requests_running", "Requests in the batch", s.requests_running),
      Gauge("num_requests_waiting", "Requests that have not started", s.requests_waiting),
      KvUsage(s),
      DeviceMemory(s.memory),
      Distribution("time_to_first_token_seconds", "Arrival to first output token",
                   s.time_to_first_token_seconds),
      Distribution("inter_token_latency_seconds", "Between two output tokens of a sample",
                   s.inter_token_latency_seconds),
      Distribution("e2e_request_latency_seconds", "Arrival to end of finished requests",
                   s.e2e_request_latency_seconds),
      Distribution("request_queue_time_seconds", "Arrival to first step",
                   s.request_queue_time_seconds),
      Distribution("request_prefill_time_seconds", "First step to first output token",
                   s.request_prefill_time_seconds),
      Distribution("request_decode_time_seconds", "First output token to end",
                   s.request_decode_time_seconds),
      Counter("prompt_tokens_total", "Prompt tokens read", s.prompt_tokens),
      Counter("generation_tokens_total", "Output tokens", s.output_tokens),
      Successes(s),
      Failures(s, counts),
      Counter("num_preemptions_total", "Sequences that had to give up their KV pages",
              s.preemptions),
      ByPhase("step_seconds", "Duration of a step; phase prefill: with any prompt token",
              s.step_seconds_prefill, s.step_seconds_decode),
      ByPhase("step_tokens", "Tokens of a step", s.step_tokens_prefill, s.step_tokens_decode),
      Distribution("hip_attended_ratio",
                   "Tokens read over tokens there, mean of a finished request's decoding",
                   s.attended_ratio),
      StageRefreshes(s),
      ByLayer("hip_recall_ratio",
              "Part of the exact attention weights on tokens that were read, of compared tokens",
              s.layer_recall),
      ByLayer("hip_output_error_ratio",
              "Distance of attention's output from the exact one over its size, of compared tokens",
              s.layer_error),
  };
}

}  // namespace everlong
