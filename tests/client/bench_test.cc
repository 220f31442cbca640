#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "client/load.h"
#include "client/load_report.h"
#include "tests/client/fake_server.h"
#include "tests/client/run_client.h"

namespace everlong {
namespace {

using ::testing::DoubleEq;
using ::testing::HasSubstr;

TEST(SummarizeTest, NothingHasNoPercentiles) {
  EXPECT_FALSE(Summarize({}).has_value());
}

TEST(SummarizeTest, TakesTheNearestRank) {
  std::vector<WeightedValue> values;
  for (int i = 200; i >= 1; --i) values.push_back({static_cast<double>(i)});
  const Distribution d = Summarize(values).value();
  EXPECT_EQ(d.p50, 100);
  EXPECT_EQ(d.p90, 180);
  EXPECT_EQ(d.p99, 198);
  EXPECT_EQ(d.max, 200);
  EXPECT_EQ(d.mean, 100.5);
}

TEST(SummarizeTest, OneValueIsEveryPercentile) {
  const Distribution d = Summarize({{3.5}}).value();
  EXPECT_EQ(d.p50, 3.5);
  EXPECT_EQ(d.p99, 3.5);
  EXPECT_EQ(d.max, 3.5);
}

TEST(SummarizeTest, WeighsValues) {
  // Ten values: 1 five times, 2 four times, 10 once.
  const Distribution d = Summarize({{10, 1}, {1, 5}, {2, 4}}).value();
  EXPECT_EQ(d.p50, 1);
  EXPECT_EQ(d.p90, 2);
  EXPECT_EQ(d.p99, 10);
  EXPECT_THAT(d.mean, DoubleEq(2.3));
}

TEST(ReportTest, CountsWhatCompletedAndWhatFailed) {
  const std::vector<CallRecord> records = {
      {.arrival = 1,
       .first_token = 1.5,
       .end = 2.5,
       .prompt_tokens = 100,
       .output_tokens = 3,
       .intervals = {{0.25, 1}, {0.5, 1}}},
      {.arrival = 2,
       .first_token = 4,
       .end = 5,
       .prompt_tokens = 50,
       .output_tokens = 5,
       .intervals = {{0.25, 4}}},
      {.arrival = 3,
       .end = 3.5,
       .prompt_tokens = 9,
       .status = absl::ResourceExhaustedError("the queue is full")},
  };
  const LoadReport report = MakeReport(records);
  const auto json = nlohmann::json::parse(ReportJson(report));
  EXPECT_EQ(json, nlohmann::json::parse(R"({
    "completed": 2, "failed": {"RESOURCE_EXHAUSTED": 1}, "duration_seconds": 4.0,
    "requests_per_second": 0.5, "prompt_tokens_per_second": 37.5, "output_tokens_per_second": 2.0,
    "first_token_seconds": {"mean": 1.25, "p50": 0.5, "p90": 2.0, "p99": 2.0, "max": 2.0},
    "inter_token_seconds": {"mean": 0.2916666666666667, "p50": 0.25, "p90": 0.5, "p99": 0.5, "max": 0.5},
    "end_to_end_seconds": {"mean": 2.25, "p50": 1.5, "p90": 3.0, "p99": 3.0, "max": 3.0}})"));
  EXPECT_EQ(ReportTable(report),
            "2 requests completed in 4.00 s\n"
            "1 failed with RESOURCE_EXHAUSTED, the first: the queue is full\n"
            "0.50 requests/s, 2.0 output tokens/s, 37.5 prompt tokens/s\n"
            "\n"
            "milliseconds              p50        p90        p99        max       mean\n"
            "first token            500.00    2000.00    2000.00    2000.00    1250.00\n"
            "between tokens         250.00     500.00     500.00     500.00     291.67\n"
            "end to end            1500.00    3000.00    3000.00    3000.00    2250.00\n");
}

TEST(ReportTest, NothingMeasuredIsNull) {
  const auto json = nlohmann::json::parse(ReportJson(MakeReport({})));
  EXPECT_TRUE(json["first_token_seconds"].is_null());
  EXPECT_EQ(json["requests_per_second"], 0);
  EXPECT_THAT(ReportTable(MakeReport({})), HasSubstr("between tokens     none measured"));
}

TEST(RecordTokensTest, AnEventWithManyTokensCountsAsManyIntervals) {
  CallRecord record;
  RecordTokens(0, 0.5, record);
  RecordTokens(2, 1, record);
  RecordTokens(1, 1.5, record);
  RecordTokens(0, 2, record);
  RecordTokens(4, 2.5, record);
  EXPECT_EQ(record.output_tokens, 7);
  EXPECT_EQ(record.first_token, 1);
  EXPECT_EQ(record.last_token, 2.5);
  ASSERT_EQ(record.intervals.size(), 2u);
  EXPECT_EQ(record.intervals[0].value, 0.5);
  EXPECT_EQ(record.intervals[0].weight, 1);
  EXPECT_EQ(record.intervals[1].value, 0.25);
  EXPECT_EQ(record.intervals[1].weight, 4);
}

LoadPlan SmallPlan() {
  return {.vocab_size = 256,
          .concurrency = 2,
          .num_requests = 10,
          .prompt_tokens = {3, 7},
          .output_tokens = {2, 4}};
}

TEST(LoadRequestTest, DependsOnSeedAndIndexAlone) {
  const LoadPlan plan = SmallPlan();
  LoadPlan other_seed = plan;
  other_seed.seed = 1;
  const std::string first = MakeLoadRequest(plan, 0).SerializeAsString();
  EXPECT_EQ(MakeLoadRequest(plan, 0).SerializeAsString(), first);
  EXPECT_NE(MakeLoadRequest(plan, 1).SerializeAsString(), first);
  EXPECT_NE(MakeLoadRequest(other_seed, 0).SerializeAsString(), first);
}

TEST(LoadRequestTest, KeepsToTheRangesAndUsesAllOfThem) {
  std::set<int64_t> prompts;
  std::set<int64_t> outputs;
  for (int i = 0; i < 200; ++i) {
    const v1::GenerateRequest request = MakeLoadRequest(SmallPlan(), i);
    EXPECT_TRUE(request.stopping().ignore_eos());
    prompts.insert(request.token_ids().ids_size());
    outputs.insert(request.stopping().max_output_tokens());
    for (const int32_t id : request.token_ids().ids()) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, 256);
    }
  }
  EXPECT_THAT(prompts, ::testing::ElementsAre(3, 4, 5, 6, 7));
  EXPECT_THAT(outputs, ::testing::ElementsAre(2, 3, 4));
}

// Writes max_output_tokens tokens, the first two in one event, and counts calls in flight. Calls
// wait, ten seconds at most, until `meeting` of them have been in flight at once.
class TokenScript {
 public:
  explicit TokenScript(int meeting = 1) : meeting_(meeting) {}

  Ending operator()(const v1::GenerateRequest& request, EventWriter& writer) {
    const int running = ++running_;
    for (int most = most_running_; running > most;)
      most_running_.compare_exchange_weak(most, running);
    for (int i = 0; i < 10'000 && most_running_ < meeting_; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    writer.Write(Event("accepted {}"));
    writer.Write(Event("output { token_ids: [1, 2] }"));
    for (int64_t i = 2; i < request.stopping().max_output_tokens(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      writer.Write(Event("output { token_ids: 3 }"));
    }
    writer.Write(Event("output { }"));
    writer.Write(Event("finished { }"));
    --running_;
    return {};
  }

  int most_running() const { return most_running_; }

 private:
  const int meeting_;
  std::atomic<int> running_ = 0;
  std::atomic<int> most_running_ = 0;
};

class LoadTest : public ::testing::Test {
 protected:
  std::vector<CallRecord> Run(const LoadPlan& plan) {
    Connection connection({.server = server_.address()});
    return RunLoad(connection, plan, stop_, [](int64_t, int64_t) {});
  }

  FakeServer server_;
  std::atomic<bool> stop_ = false;
};

TEST_F(LoadTest, KeepsConcurrencyAndCountsTokens) {
  TokenScript tokens(/*meeting=*/2);
  server_.script = std::ref(tokens);
  const LoadPlan plan = SmallPlan();
  const std::vector<CallRecord> records = Run(plan);
  ASSERT_EQ(records.size(), 10u);
  EXPECT_EQ(tokens.most_running(), 2);
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  for (int i = 0; i < 10; ++i) {
    prompt_tokens += MakeLoadRequest(plan, i).token_ids().ids_size();
    output_tokens += MakeLoadRequest(plan, i).stopping().max_output_tokens();
  }
  const LoadReport report = MakeReport(records);
  EXPECT_EQ(report.num_completed, 10);
  EXPECT_EQ(report.prompt_tokens, prompt_tokens);
  EXPECT_EQ(report.output_tokens, output_tokens);
  for (const CallRecord& record : records) {
    EXPECT_LT(record.arrival, record.first_token);
    EXPECT_LE(record.first_token, record.last_token);
    EXPECT_LE(record.last_token, record.end);
    int64_t measured = 0;
    for (const WeightedValue& interval : record.intervals) measured += interval.weight;
    EXPECT_EQ(measured, record.output_tokens - 2) << "all but those of the first event";
  }
}

TEST_F(LoadTest, RateSpacesArrivalsAndLatencyCountsFromThem) {
  LoadPlan plan = SmallPlan();
  plan.concurrency = 0;
  plan.rate = 100;
  plan.num_requests = 40;
  const std::vector<CallRecord> records = Run(plan);
  ASSERT_EQ(records.size(), 40u);
  double last = 0;
  std::set<double> arrivals;
  for (const CallRecord& record : records) {
    arrivals.insert(record.arrival);
    last = std::max(last, record.arrival);
    EXPECT_GE(record.end, record.arrival) << "none starts before it is due";
  }
  EXPECT_EQ(arrivals.size(), 40u);
  // The sum of 40 exponential gaps of mean 10 ms: 0.4 s, with a standard deviation of 0.063 s.
  EXPECT_GT(last, 0.4 - 4 * 0.0633);
  EXPECT_LT(last, 0.4 + 4 * 0.0633);
}

TEST_F(LoadTest, WaitingForConcurrencyCountsWhereArrivalsHaveARate) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return Ending{};
  };
  LoadPlan plan = SmallPlan();
  plan.concurrency = 1;
  plan.rate = 10'000;
  plan.num_requests = 4;
  const std::vector<CallRecord> records = Run(plan);
  ASSERT_EQ(records.size(), 4u);
  EXPECT_GE(records[3].end - records[3].arrival, 0.19);
}

TEST_F(LoadTest, DurationEndsArrivalsAndWaitsForWhatRuns) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return Ending{};
  };
  LoadPlan plan = SmallPlan();
  plan.num_requests = 0;
  plan.duration_seconds = 0.2;
  const std::vector<CallRecord> records = Run(plan);
  EXPECT_GE(records.size(), 2u);
  for (const CallRecord& record : records) {
    EXPECT_LT(record.arrival, 0.2);
    EXPECT_TRUE(record.status.ok());
  }
}

TEST_F(LoadTest, AServerThatRefusesIsNotAskedAtOnceAgain) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    return Ending{absl::StatusCode::kResourceExhausted, "full", {}};
  };
  LoadPlan plan = SmallPlan();
  plan.concurrency = 1;
  plan.num_requests = 0;
  plan.duration_seconds = 0.45;
  EXPECT_LE(Run(plan).size(), 5u);
}

TEST_F(LoadTest, StopCancelsWhatRunsAndLeavesItOut) {
  server_.script = [this](const v1::GenerateRequest&, EventWriter& writer) {
    stop_ = true;
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{};
  };
  LoadPlan plan = SmallPlan();
  plan.num_requests = 1000;
  EXPECT_TRUE(Run(plan).empty());
  EXPECT_LE(server_.generate_requests().size(), 2u);
}

class BenchCommandTest : public ::testing::Test {
 protected:
  Outcome Bench(std::vector<std::string> args, Terminals terminals = {}) {
    args.insert(args.begin(), {"bench", "--server", server_.address()});
    return RunEverlong(args, "", terminals, &interrupts_);
  }

  FakeServer server_;
  TokenScript tokens_;
  Interrupts interrupts_;
};

TEST_F(BenchCommandTest, PrintsATable) {
  server_.script = std::ref(tokens_);
  const Outcome outcome = Bench({"--requests", "5", "--prompt-tokens", "8", "--output-tokens", "3",
                                 "--warmup", "2", "--concurrency", "2"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, HasSubstr("5 requests completed in "));
  const auto requests = server_.generate_requests();
  EXPECT_EQ(requests.size(), 7u) << "with two to warm up";
  for (const v1::GenerateRequest& request : requests) {
    EXPECT_EQ(request.token_ids().ids_size(), 8);
    EXPECT_EQ(request.stopping().max_output_tokens(), 3);
  }
}

TEST_F(BenchCommandTest, ProgressShowsOnATerminalAndIsGoneAtTheEnd) {
  server_.script = std::ref(tokens_);
  const Outcome outcome = Bench({"--requests", "3", "--output-tokens", "4"}, {.err = true});
  EXPECT_THAT(outcome.err, HasSubstr("\r\033[K0 of 3 requests ended, 1 in flight"));
  EXPECT_THAT(outcome.err, ::testing::EndsWith("\r\033[K"));
}

TEST_F(BenchCommandTest, JsonIsOneLine) {
  server_.script = std::ref(tokens_);
  const Outcome outcome = Bench({"--requests", "3", "--output-tokens", "2-4", "--json"});
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 1);
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["completed"], 3);
  EXPECT_TRUE(json["failed"].empty());
  EXPECT_GT(json["end_to_end_seconds"]["p50"], 0);
}

TEST_F(BenchCommandTest, FailuresAreCountedByCode) {
  server_.script = [](const v1::GenerateRequest&, EventWriter&) {
    return Ending{absl::StatusCode::kResourceExhausted, "the queue is full", {}};
  };
  const Outcome outcome = Bench({"--requests", "2", "--warmup", "0"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out,
              HasSubstr("2 failed with RESOURCE_EXHAUSTED, the first: the queue is full\n"));
}

TEST_F(BenchCommandTest, CtrlCReportsWhatWasMeasured) {
  server_.script = [this](const v1::GenerateRequest& request, EventWriter& writer) {
    if (server_.generate_requests().size() < 3) return tokens_(request, writer);
    interrupts_.Raise();
    EXPECT_TRUE(writer.WaitForCancel());
    return Ending{};
  };
  const Outcome outcome =
      Bench({"--requests", "100", "--warmup", "0", "--output-tokens", "3", "--prompt-tokens", "2"});
  EXPECT_EQ(outcome.code, kExitInterrupted);
  EXPECT_THAT(outcome.out, HasSubstr("2 requests completed"));
}

TEST_F(BenchCommandTest, LengthsBeyondTheServedLengthAreWrongUsage) {
  server_.script = std::ref(tokens_);
  const Outcome beyond = Bench({"--prompt-tokens", "1-2000", "--output-tokens", "49"});
  EXPECT_EQ(beyond.code, 2);
  EXPECT_EQ(beyond.err,
            "everlong: --prompt-tokens 2000 and --output-tokens 49 exceed the 2048 tokens that "
            "bytes is served with\n");
  EXPECT_EQ(Bench({"--prompt-tokens", "2044", "--output-tokens", "4", "--requests", "1"}).code, 0);
}

TEST_F(BenchCommandTest, WrongRangesAreWrongUsage) {
  for (const char* range : {"0", "5-3", "-4", "x", "3-", "3-4x", "3 4", ""}) {
    const Outcome outcome = Bench({"--prompt-tokens", range});
    EXPECT_EQ(outcome.code, 2) << range;
    EXPECT_THAT(outcome.err, HasSubstr("is neither N nor MIN-MAX"));
  }
  EXPECT_EQ(Bench({"--prompt-tokens", "99999999999999999999"}).code, 2);
  EXPECT_EQ(Bench({"--concurrency", "0"}).code, 2);
  EXPECT_EQ(Bench({"--rate", "-1"}).code, 2);
}

}  // namespace
}  // namespace everlong
