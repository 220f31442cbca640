// From loading to stopped: health, refusals, drain, faults, addresses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "kernels/kernels.h"
#include "nlohmann/json.hpp"
#include "server/device.h"
#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

constexpr char kInference[] = "everlong.v1.Inference";

TEST(LifecycleTest, WhileLoadingHealthIsNotServingAndRequestsAreTurnedAway) {
  TestServer server({.serve = false});
  EXPECT_EQ(server.Health(""), "NOT_SERVING");
  EXPECT_EQ(server.Health(kInference), "NOT_SERVING");
  const Answer refused = server.Generate(TokenRequest(10, 2));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("loaded"));
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  EXPECT_EQ(server.stub().ListModels(&context, {}, &models).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server.Metric("build_info{version=\"" EVERLONG_VERSION "\"}"), "1");

  server.Serve();
  EXPECT_EQ(server.Health(""), "SERVING");
  EXPECT_EQ(server.Health(kInference), "SERVING");
  EXPECT_TRUE(server.Generate(TokenRequest(10, 2)).status.ok());
  EXPECT_EQ(server.Metric("request_failure_total{code=\"UNAVAILABLE\"}"), "1");
}

TEST(LifecycleTest, HealthOfOtherServicesIsNotFound) {
  TestServer server;
  const auto [status, response] =
      server.RawCall("/grpc.health.v1.Health/Check", std::string("\x0A\x05other", 7));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(LifecycleTest, ReflectionListsTheServices) {
  TestServer server;
  const auto [status, response] = server.RawCall(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", std::string("\x3A\x00", 2));
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(response, HasSubstr(kInference));
  EXPECT_THAT(response, HasSubstr("grpc.health.v1.Health"));
}

TEST(LifecycleTest, DrainLetsRunningRequestsFinishAndTurnsNewOnesAway) {
  std::atomic<bool> held{true};
  TestServer server({.hook = [&] {
    while (held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }});
  grpc::ClientContext context;
  const auto reader = server.stub().Generate(&context, TokenRequest(100, 20));
  ASSERT_TRUE(Eventually([&] { return server.engine().Stats().requests_running == 1; }));

  server.server().Drain();
  EXPECT_EQ(server.Health(""), "NOT_SERVING");
  EXPECT_EQ(server.Health(kInference), "NOT_SERVING");
  const Answer refused = server.Generate(TokenRequest(10, 2));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
  EXPECT_FALSE(server.server().Idle());

  held = false;
  const Answer answer = ReadAll(*reader);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.tokens().size(), 20u);
  EXPECT_TRUE(Eventually([&] { return server.server().Idle(); }));
}

TEST(LifecycleTest, StopEndsWhatRunsWithUnavailable) {
  TestServer server;
  grpc::ClientContext context;
  const auto reader = server.stub().Generate(&context, TokenRequest(100, 3900));
  v1::GenerateEvent event;
  while (!event.has_output()) ASSERT_TRUE(reader->Read(&event));
  std::thread stop([&] { server.server().Stop(); });
  const Answer answer = ReadAll(*reader);
  stop.join();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("stopped"));
}

// An open health watch, as load balancers keep, must not hold a stop up.
TEST(LifecycleTest, StopDoesNotWaitForWatchers) {
  TestServer server;
  grpc::ClientContext context;
  const auto channel = server.NewChannel();
  std::thread watch([&] {
    grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch",
                                     grpc::internal::RpcMethod::SERVER_STREAMING);
    grpc::ByteBuffer request;
    const grpc::Slice nothing("");
    request = grpc::ByteBuffer(&nothing, 1);
    std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
        grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(channel.get(), method,
                                                                      &context, request));
    for (grpc::ByteBuffer update; reader->Read(&update);) {
    }
    reader->Finish();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto begin = std::chrono::steady_clock::now();
  server.server().Stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  watch.join();
}

TEST(LifecycleTest, ADeviceFaultEndsRequestsWithInternalAndShows) {
  std::atomic<bool> fail{false};
  TestServer server({.hook = [&] {
    if (fail) throw DeviceError("an injected fault");
  }});
  grpc::ClientContext context;
  const auto reader = server.stub().Generate(&context, TokenRequest(100, 3900));
  v1::GenerateEvent event;
  while (!event.has_output()) ASSERT_TRUE(reader->Read(&event));
  EXPECT_TRUE(server.server().Healthy());
  fail = true;
  const Answer answer = ReadAll(*reader);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("an injected fault"));
  EXPECT_FALSE(server.server().Healthy());
  const Answer later = server.Generate(TokenRequest(10, 2));
  EXPECT_EQ(later.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(later.status.error_message(), HasSubstr("device has failed"));
}

TEST(LifecycleTest, AnAddressInUseIsNamed) {
  TestServer first({.serve = false});
  ServerOptions options = TestServerOptions();
  options.listen = first.server().grpc_address();
  auto second = Server::Listen(options);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("--listen: cannot bind " + options.listen));
  options = TestServerOptions();
  options.metrics_listen = first.server().metrics_address();
  second = Server::Listen(options);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("--metrics-listen: cannot bind " + options.metrics_listen));
}

TEST(LifecycleTest, TheReadyFileHoldsBothAddresses) {
  TestServer server({.serve = false});
  const std::string path = ::testing::TempDir() + "/everlong_ready.json";
  ASSERT_TRUE(WriteReadyFile(path, server.server()).ok());
  const auto json = nlohmann::json::parse(std::ifstream(path));
  EXPECT_EQ(json.at("grpc"), server.server().grpc_address());
  EXPECT_EQ(json.at("metrics"), server.server().metrics_address());
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  const absl::Status status = WriteReadyFile("/no/such/directory/file", server.server());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such/directory/file"));
}

TEST(LifecycleTest, ACheckpointThatCannotBeOpenedIsNamed) {
  ServerOptions options = TestServerOptions();
  options.model = "/no/such/model";
  const auto served = LoadModel(options);
  ASSERT_FALSE(served.ok());
  EXPECT_THAT(std::string(served.status().message()), HasSubstr("/no/such/model"));
}

TEST(LifecycleTest, CudaIsRefusedWithTheReasonAndAutoTakesTheCpu) {
  std::string why;
  if (MakeCudaKernels(DType::kBF16, &why) != nullptr) GTEST_SKIP() << "there is a GPU";
  EXPECT_FALSE(why.empty());
  ServerOptions options = TestServerOptions();
  options.device = "cuda";
  const absl::Status refused = OpenDevice(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(refused.message()), "--device cuda: " + why);
  options.device = "auto";
  EXPECT_EQ((*OpenDevice(options))->name(), "cpu");
}

TEST(LifecycleTest, TheCpuRefusesWhatOnlyCudaKnows) {
  ServerOptions options = TestServerOptions();
  options.device = "cpu";
  options.weight_type = DType::kF8;
  const absl::Status weights = OpenDevice(options).status();
  EXPECT_EQ(weights.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(weights.message()), HasSubstr("--weight-type"));
  options.weight_type.reset();
  options.model = EVERLONG_MODEL;
  options.engine.kv_type = DType::kF8;
  const absl::Status cache = LoadModel(options).status();
  EXPECT_EQ(cache.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(cache.message()), HasSubstr("cpu stores f16, bf16, f32, not fp8"));
}

}  // namespace
}  // namespace everlong
