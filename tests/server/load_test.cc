// Clients that are slow, many, impatient or gone: none disturbs another and nothing stays behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

v1::GenerateRequest Endless() {
  return TokenRequest(100, 3900);
}

bool AllFree(const TestServer& server) {
  const EngineStats stats = server.engine().Stats();
  return stats.kv_pages_used == 0 && stats.requests_running == 0 && stats.requests_waiting == 0;
}

// Starts a call and reads until its first output.
std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> StartedCall(v1::Inference::Stub& stub,
                                                                   grpc::ClientContext* context,
                                                                   const v1::GenerateRequest& r) {
  auto reader = stub.Generate(context, r);
  v1::GenerateEvent event;
  while (!event.has_output() && reader->Read(&event)) {
  }
  EXPECT_TRUE(event.has_output());
  return reader;
}

TEST(LoadTest, CancelFreesEverythingAtOnce) {
  TestServer server;
  grpc::ClientContext context;
  const auto reader = StartedCall(server.stub(), &context, Endless());
  EXPECT_GT(server.engine().Stats().requests_running, 0);
  context.TryCancel();
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
  EXPECT_LT(server.engine().Stats().output_tokens, 3900u);
  EXPECT_EQ(server.Metric("request_failure_total{code=\"CANCELLED\"}"), "1");
}

TEST(LoadTest, AVanishedClientFreesEverything) {
  TestServer server;
  auto channel = server.NewChannel();
  auto stub = v1::Inference::NewStub(channel);
  auto context = std::make_unique<grpc::ClientContext>();
  auto reader = StartedCall(*stub, context.get(), Endless());
  // Everything goes without a word about the call.
  context->TryCancel();
  reader.reset();
  context.reset();
  stub.reset();
  channel.reset();
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
}

TEST(LoadTest, ADeadlineEndsTheCallAndFreesEverything) {
  TestSetup setup;
  setup.hook = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  TestServer server(setup);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  const auto reader = server.stub().Generate(&context, Endless());
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
  // The client's clock may run out first: then all the server sees is a cancel.
  const auto failures = server.engine().Stats().failures;
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_TRUE(failures.contains(absl::StatusCode::kDeadlineExceeded) ||
              failures.contains(absl::StatusCode::kCancelled));
}

// Much to send in few steps: about 220 bytes for each of 600 tokens of each sample.
v1::GenerateRequest Voluminous(int num_samples) {
  v1::GenerateRequest request = TokenRequest(10, 600);
  request.set_num_samples(num_samples);
  request.mutable_logprobs()->set_output(true);
  request.mutable_logprobs()->set_top(20);
  return request;
}

// Output tokens once there come no more.
uint64_t StalledOutput(const TestServer& server) {
  uint64_t before = 0;
  EXPECT_TRUE(Eventually([&] {
    const uint64_t now = server.engine().Stats().output_tokens;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    before = server.engine().Stats().output_tokens;
    return now == before && now > 0;
  }));
  return before;
}

TEST(LoadTest, AReaderThatDoesNotReadIsPausedAndDelaysNobody) {
  TestSetup setup;
  setup.options.engine.max_running = 16;
  TestServer server(setup);
  const v1::GenerateRequest request = Voluminous(8);
  grpc::ClientContext context;
  const auto channel = server.NewChannel();
  const auto stub = v1::Inference::NewStub(channel);
  const auto slow = stub->Generate(&context, request);

  // Generation stops once what nobody reads has filled its bound.
  const uint64_t tokens = StalledOutput(server);
  EXPECT_LT(tokens, 8u * 400);
  EXPECT_EQ(server.Generate(TokenRequest(50, 20)).tokens().size(), 20u);
  EXPECT_EQ(server.engine().Stats().output_tokens, tokens + 20);

  // Once it reads, it gets everything, in fewer messages than tokens.
  const Answer answer = ReadAll(*slow);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  for (int sample = 0; sample < 8; ++sample) EXPECT_EQ(answer.tokens(sample).size(), 600u);
  EXPECT_LT(answer.events.size(), 8u * 600);
  size_t num_logprobs = 0;
  for (const auto& event : answer.events) num_logprobs += event.output().logprobs_size();
  EXPECT_EQ(num_logprobs, 8u * 600);
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
}

TEST(LoadTest, SlowReadersInAllPlacesDelayNobody) {
  TestSetup setup;
  setup.options.engine.max_running = 8;
  TestServer server(setup);
  grpc::ClientContext context;
  const auto slow = server.stub().Generate(&context, Voluminous(8));
  StalledOutput(server);
  EXPECT_EQ(server.engine().Stats().preemptions, 0u);
  EXPECT_EQ(server.Generate(TokenRequest(50, 20)).tokens().size(), 20u);
  EXPECT_GT(server.engine().Stats().preemptions, 0u);
  context.TryCancel();
  ReadAll(*slow);
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
}

TEST(LoadTest, ManyClientsEachGetTheirOwnAnswer) {
  TestServer server;
  constexpr int kClients = 16;
  constexpr int kRequests = 4;
  std::vector<std::vector<int32_t>> expected(kClients);
  for (int i = 0; i < kClients; ++i) {
    expected[i] = server.Generate(TokenRequest(20 + 13 * i, 10)).tokens();
  }
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      const auto stub = v1::Inference::NewStub(server.NewChannel());
      for (int j = 0; j < kRequests; ++j) {
        grpc::ClientContext context;
        const auto reader = stub->Generate(&context, TokenRequest(20 + 13 * i, 10));
        if ((i + j) % 5 == 0) context.TryCancel();
        const Answer answer = ReadAll(*reader);
        if (answer.status.ok()) {
          EXPECT_EQ(answer.tokens(), expected[i]);
        } else {
          EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(Eventually([&] { return AllFree(server); }));
}

TEST(LoadTest, AFullQueueIsToldWithItsLimitAndARetryDelay) {
  TestSetup setup;
  setup.options.engine.max_running = 1;
  setup.options.engine.max_waiting = 1;
  TestServer server(setup);
  grpc::ClientContext first_context;
  const auto first = StartedCall(server.stub(), &first_context, Endless());
  grpc::ClientContext second_context;
  const auto second = server.stub().Generate(&second_context, Endless());
  ASSERT_TRUE(Eventually([&] { return server.engine().Stats().requests_waiting == 1; }));
  const Answer refused = server.Generate(TokenRequest(10, 2));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("max_waiting is 1"));
  EXPECT_THAT(refused.status.error_details(), HasSubstr("google.rpc.RetryInfo"));
  EXPECT_EQ(server.Metric("num_requests_waiting"), "1");
  first_context.TryCancel();
  second_context.TryCancel();
  ReadAll(*first);
  ReadAll(*second);
}

TEST(LoadTest, MetricsTellOfTheRequestsThatWere) {
  TestServer server;
  const Answer answer = server.Generate(TokenRequest(300, 12));
  ASSERT_TRUE(answer.status.ok());
  v1::GenerateRequest bad = TokenRequest(10, 2);
  bad.mutable_sampling()->set_top_p(2);
  EXPECT_FALSE(server.Generate(bad).status.ok());
  const std::pair<const char*, const char*> expected[] = {
      {"prompt_tokens_total", "300"},
      {"generation_tokens_total", "12"},
      {"request_success_total{finished_reason=\"length\"}", "1"},
      {"request_failure_total{code=\"INVALID_ARGUMENT\"}", "1"},
      {"time_to_first_token_seconds_count", "1"},
      {"inter_token_latency_seconds_count", "11"},
      {"e2e_request_latency_seconds_count", "1"},
      {"num_requests_running", "0"},
      {"kv_cache_usage_ratio{tier=\"device\"}", "0"},
      {"build_info{version=\"" EVERLONG_VERSION "\"}", "1"},
  };
  for (const auto& [series, value] : expected) EXPECT_EQ(server.Metric(series), value) << series;
  EXPECT_TRUE(server.Metrics().find("# TYPE everlong_prompt_tokens_total counter\n") !=
              std::string::npos);
}

}  // namespace
}  // namespace everlong
