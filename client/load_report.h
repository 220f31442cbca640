// What a load measured.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/load.h"

namespace everlong {

struct Distribution {
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};

// Percentile p is the smallest value that at least p percent of the weight does not exceed (nearest
// rank). Nothing where there are no values.
std::optional<Distribution> Summarize(std::vector<WeightedValue> values);

struct Failures {
  int64_t count = 0;
  std::string first_message;
};

// Requests that failed count among the failures and in the duration only. Times are in seconds.
struct LoadReport {
  int64_t num_completed = 0;
  std::map<std::string, Failures> failures;  // by the name of the code
  double duration = 0;                       // first arrival to last end
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  // All counted from a request's arrival.
  std::optional<Distribution> first_token;
  std::optional<Distribution> end_to_end;
  std::optional<Distribution> inter_token;
};

LoadReport MakeReport(const std::vector<CallRecord>& records);

std::string ReportTable(const LoadReport& report);

// One line: {"completed":..,"failed":{CODE:..},"duration_seconds":..,"requests_per_second":..,
// "prompt_tokens_per_second":..,"output_tokens_per_second":..,"first_token_seconds":{"mean":..,
// "p50":..,"p90":..,"p99":..,"max":..},"inter_token_seconds":..,"end_to_end_seconds":..}; null for
// what nothing was measured of.
std::string ReportJson(const LoadReport& report);

}  // namespace everlong
