#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <map>

namespace everlong {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Exposition(const EngineStats& stats, const CallCounts& counts) {
  return prometheus::TextSerializer().Serialize(ToMetrics(stats, counts));
}

TEST(MetricsTest, ValuesTypesAndLabelsAreThere) {
  EngineStats stats;
  stats.requests_running = 2;
  stats.requests_waiting = 5;
  stats.kv_pages_total = 8;
  stats.kv_pages_used = 2;
  stats.memory = {
      .weights = 11, .activations = 12, .kv = 13, .index = 14, .selection = 15, .other = 16};
  stats.prompt_tokens = 1000;
  stats.output_tokens = 30;
  stats.preemptions = 4;
  stats.finished = {1, 2, 3};
  stats.failures[absl::StatusCode::kCancelled] = 6;
  CallCounts counts;
  counts.OnRefusal(absl::StatusCode::kCancelled);
  counts.OnRefusal(absl::StatusCode::kInvalidArgument);
  const std::string text = Exposition(stats, counts);
  for (const char* line : {
           "# TYPE everlong_num_requests_running gauge\neverlong_num_requests_running 2\n",
           "everlong_num_requests_waiting 5\n",
           "everlong_kv_cache_usage_ratio{tier=\"device\"} 0.25\n",
           "# TYPE everlong_device_memory_bytes gauge\n",
           "everlong_device_memory_bytes{use=\"weights\"} 11\n",
           "everlong_device_memory_bytes{use=\"activations\"} 12\n",
           "everlong_device_memory_bytes{use=\"kv\"} 13\n",
           "everlong_device_memory_bytes{use=\"index\"} 14\n",
           "everlong_device_memory_bytes{use=\"selection\"} 15\n",
           "everlong_device_memory_bytes{use=\"other\"} 16\n",
           "# TYPE everlong_prompt_tokens_total counter\neverlong_prompt_tokens_total 1000\n",
           "everlong_generation_tokens_total 30\n",
           "everlong_num_preemptions_total 4\n",
           "everlong_request_success_total{finished_reason=\"stop_token\"} 1\n",
           "everlong_request_success_total{finished_reason=\"stop_string\"} 2\n",
           "everlong_request_success_total{finished_reason=\"length\"} 3\n",
           "everlong_request_failure_total{code=\"CANCELLED\"} 7\n",
           "everlong_request_failure_total{code=\"INVALID_ARGUMENT\"} 1\n",
           "everlong_request_failure_total{code=\"INTERNAL\"} 0\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, FidelityIsThereByLayerOnceATokenWasCompared) {
  EngineStats stats;
  EXPECT_THAT(Exposition(stats, CallCounts()), Not(HasSubstr("layer=")));
  stats.ObserveFidelity(std::vector<LayerFidelity>{{}, {.recall = 0.5, .error = 0.25}});
  const std::string text = Exposition(stats, CallCounts());
  for (const char* line : {
           "# TYPE everlong_hip_recall_ratio histogram\n",
           "everlong_hip_recall_ratio_sum{layer=\"0\"} 1\n",
           "everlong_hip_recall_ratio_sum{layer=\"1\"} 0.5\n",
           "everlong_hip_recall_ratio_bucket{layer=\"1\",le=\"0.25\"} 0\n",
           "everlong_hip_recall_ratio_bucket{layer=\"1\",le=\"0.5\"} 1\n",
           "everlong_hip_output_error_ratio_count{layer=\"0\"} 1\n",
           "everlong_hip_output_error_ratio_sum{layer=\"1\"} 0.25\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsTest, HistogramsAreCumulativeAndEndInInfinity) {
  EngineStats stats;
  stats.time_to_first_token_seconds.Observe(0.001);  // a bound belongs to its bucket
  stats.time_to_first_token_seconds.Observe(0.3);
  stats.time_to_first_token_seconds.Observe(5000);
  stats.step_tokens_decode.Observe(3);
  const std::string text = Exposition(stats, CallCounts());
  for (const char* line : {
           "# TYPE everlong_time_to_first_token_seconds histogram\n",
           "everlong_time_to_first_token_seconds_count 3\n",
           "everlong_time_to_first_token_seconds_bucket{le=\"0.001\"} 1\n",
           "everlong_time_to_first_token_seconds_bucket{le=\"0.5\"} 2\n",
           "everlong_time_to_first_token_seconds_bucket{le=\"2560\"} 2\n",
           "everlong_time_to_first_token_seconds_bucket{le=\"+Inf\"} 3\n",
           "everlong_step_tokens_bucket{phase=\"decode\",le=\"4\"} 1\n",
           "everlong_step_tokens_bucket{phase=\"prefill\",le=\"+Inf\"} 0\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

// Every bucket that vLLM has is there, so that its dashboards' quantiles mean the same.
TEST(MetricsTest, BucketsContainVllms) {
  const EngineStats stats;
  const auto contains = [](const Histogram& ours, const std::vector<double>& theirs) {
    return std::includes(ours.bounds.begin(), ours.bounds.end(), theirs.begin(), theirs.end());
  };
  EXPECT_TRUE(contains(stats.time_to_first_token_seconds,
                       {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
                        1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0}));
  EXPECT_TRUE(contains(stats.inter_token_latency_seconds,
                       {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
                        5.0, 7.5, 10.0, 20.0, 40.0, 80.0}));
  for (const Histogram* histogram :
       {&stats.e2e_request_latency_seconds, &stats.request_queue_time_seconds,
        &stats.request_prefill_time_seconds, &stats.request_decode_time_seconds}) {
    EXPECT_TRUE(contains(*histogram,
                         {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                          30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0}));
  }
}

TEST(MetricsTest, BuildInfoIsOne) {
  const auto text = prometheus::TextSerializer().Serialize({BuildInfo("1.2.3")});
  EXPECT_THAT(text, HasSubstr("everlong_build_info{version=\"1.2.3\"} 1\n"));
}

}  // namespace
}  // namespace everlong
