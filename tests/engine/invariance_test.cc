// Nothing of a request's output depends on anything but the request.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

class InvarianceTest : public EngineBackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, InvarianceTest, ::testing::Values("reference", "cpu", "phased"));

// The central promise: neither company nor chunk size changes a request's tokens.
void ExpectSameAloneAndInAnyBatch(const std::vector<Request>& requests,
                                  const std::string& backend) {
  std::vector<std::vector<int32_t>> alone;
  for (const Request& request : requests) {
    alone.push_back(OutputAlone(SmallOptions(), backend, request));
  }
  for (const int32_t max_batch_tokens : {72, 100, 333, 1024}) {
    EngineOptions options = SmallOptions();
    options.max_batch_tokens = max_batch_tokens;
    auto engine = MakeTinyEngine(options, MakeKernels(backend));
    const auto sinks = RunStaggered(*engine, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(sinks[i]->tokens(), alone[i]) << "request " << i << ", chunk " << max_batch_tokens;
    }
  }
}

TEST_P(InvarianceTest, OutputIsTheSameAloneInAnyBatchWithAnyChunk) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 1 + 97 * i), 20));
    if (i % 2 == 1) requests.back().sampling = {.temperature = 0.9f, .top_p = 0.95f, .seed = i};
  }
  ExpectSameAloneAndInAnyBatch(requests, GetParam());
}

TEST_P(InvarianceTest, PreemptionDoesNotChangeTheOutput) {
  EngineOptions options = SmallOptions();
  options.max_context = 640;
  options.kv_device_bytes = 12 * kTinyPageBytes;  // 768 tokens: one and a half of these requests
  auto engine = MakeTinyEngine(options, MakeKernels(GetParam()));
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint32_t i = 0; i < 3; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(40 + i, 200), 300));
    sinks.push_back(SubmitTo(*engine, requests.back()));
  }
  RunToEnd(*engine);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens(), OutputAlone(SmallOptions(), GetParam(), requests[i]));
  }
}

TEST_P(InvarianceTest, SparseOutputIsTheSameAloneInAnyBatchWithAnyChunk) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 1 + 151 * i), 30));
    if (i > 0) requests.back().attention = SparseAttention(i % 2 == 0 ? "default" : "3k");
  }
  ExpectSameAloneAndInAnyBatch(requests, GetParam());
}

TEST_P(InvarianceTest, SparseOutputSurvivesPreemptionAndSampling) {
  EngineOptions options = SmallOptions();
  options.max_context = 640;
  options.kv_device_bytes = 14 * kTinyPageBytes;
  auto engine = MakeTinyEngine(options, MakeKernels(GetParam()));
  std::vector<Request> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint32_t i = 0; i < 3; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(40 + i, 250), 200));
    requests.back().attention = SparseAttention(i % 2 == 0 ? "default" : "3k");
    sinks.push_back(SubmitTo(*engine, requests.back()));
  }
  RunToEnd(*engine);
  EXPECT_GT(engine->Stats().preemptions, 0u);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens(), OutputAlone(SmallOptions(), GetParam(), requests[i]));
  }
  requests[0].num_samples = 3;
  EXPECT_EQ(OutputAlone(SmallOptions(), GetParam(), requests[0]), sinks[0]->tokens());
}

TEST_P(InvarianceTest, SamplesShareThePromptAndDrawTheirOwnStreams) {
  Request request = GreedyRequest(RandomPrompt(7, 150), 10);
  request.sampling = {.temperature = 1.0f, .seed = 11};
  request.num_samples = 5;
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  auto sink = SubmitTo(*engine, request);
  int64_t most_pages = 0;
  while (!sink->finished()) {
    engine->Step();
    most_pages = std::max(most_pages, engine->Stats().kv_pages_used);
  }
  // Two whole pages are shared; each sample holds a third of its own.
  EXPECT_LE(most_pages, 2 + 5 + 1);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
  EXPECT_EQ(engine->Stats().prompt_tokens, 150u);
  std::set<std::vector<int32_t>> distinct;
  for (int32_t sample = 0; sample < 5; ++sample) {
    EXPECT_EQ(sink->tokens(sample).size(), 10u);
    distinct.insert(sink->tokens(sample));
  }
  EXPECT_EQ(distinct.size(), 5u);
  EXPECT_EQ(sink->samples.size(), 5u);
  request.num_samples = 1;
  EXPECT_EQ(sink->tokens(0), OutputAlone(SmallOptions(), GetParam(), request));
}

}  // namespace
}  // namespace everlong
