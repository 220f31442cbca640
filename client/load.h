// A load of Generate requests, and what became of each.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/connection.h"

namespace everlong {

// Lengths are drawn evenly from [min, max].
struct LengthRange {
  int64_t min = 1;
  int64_t max = 1;
};

// At least one of num_requests and duration_seconds, and one of concurrency and rate, is set.
struct LoadPlan {
  std::string model;
  int64_t vocab_size = 0;       // prompts are token ids drawn from it
  int64_t concurrency = 0;      // requests in flight at most; 0: any number
  double rate = 0;              // mean arrivals per second (Poisson); 0: as concurrency lets
  int64_t num_requests = 0;     // 0: any number
  double duration_seconds = 0;  // in which requests arrive; 0: any
  LengthRange prompt_tokens;
  LengthRange output_tokens;  // exact: the model's end of sequence does not end them
  uint64_t seed = 0;
};

// Prompt, lengths and sampling seed depend on (plan.seed, index) alone.
v1::GenerateRequest MakeLoadRequest(const LoadPlan& plan, int64_t index);

struct WeightedValue {
  double value = 0;
  int64_t weight = 1;
};

// One request. Times are in seconds since the load began.
struct CallRecord {
  double arrival = 0;  // when it was due, though the limit of concurrency may have held it back
  double first_token = 0;
  double last_token = 0;
  double end = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  // Seconds between output tokens: an event with n tokens counts as n intervals of equal length.
  std::vector<WeightedValue> intervals;
  absl::Status status;
};

// Takes down that `num_tokens` arrived together.
void RecordTokens(int64_t num_tokens, double now, CallRecord& record);

// Called at least every 50 ms; must be cheap.
using LoadProgress = std::function<void(int64_t ended, int64_t in_flight)>;

// Runs the plan on the calling thread until no request is in flight. Once `stop` is set, by another
// thread, it starts none and cancels those that run, which are left out of the result.
std::vector<CallRecord> RunLoad(Connection& connection, const LoadPlan& plan,
                                const std::atomic<bool>& stop, const LoadProgress& progress);

}  // namespace everlong
