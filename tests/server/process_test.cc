// The program itself: exit status, messages, signals, the ready file.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>

#include "everlong/v1/inference.grpc.pb.h"
#include "tests/server/server_process.h"
#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

TEST(ProcessTest, WrongUsageExitsWithTwo) {
  ServerProcess process({"--max-context", "many", "--model", EVERLONG_MODEL});
  EXPECT_EQ(process.Wait(), 2);
  EXPECT_THAT(process.Log(), HasSubstr("--max-context: 'many' is not a number"));
}

TEST(ProcessTest, AFailedStartExitsWithOneAndSaysWhy) {
  ServerProcess no_model(
      {"--model", "/no/such/model", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
  EXPECT_EQ(no_model.Wait(), 1);
  EXPECT_THAT(no_model.Log(), HasSubstr("/no/such/model"));
  ServerProcess no_memory(Serving({"--kv-device-bytes", "1KiB"}));
  EXPECT_EQ(no_memory.Wait(), 1);
  EXPECT_THAT(no_memory.Log(), HasSubstr("1024 bytes hold 0 tokens"));
  ServerProcess no_cuda(Serving({"--device", "cuda"}));
  EXPECT_EQ(no_cuda.Wait(), 1);
  EXPECT_THAT(no_cuda.Log(), HasSubstr("--device cuda: "));
}

TEST(ProcessTest, SigtermWhenIdleExitsWithZeroAtOnce) {
  ServerProcess process(Serving());
  ASSERT_TRUE(Eventually([&] { return process.Ready(); })) << process.Log();
  const auto begin = std::chrono::steady_clock::now();
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(ProcessTest, TheDrainEndsAtItsLimitAndASecondSignalAtOnce) {
  for (const bool second_signal : {false, true}) {
    ServerProcess process(Serving({"--drain-seconds", second_signal ? "600" : "0.1"}));
    ASSERT_TRUE(Eventually([&] { return process.Ready(); })) << process.Log();
    const auto stub = v1::Inference::NewStub(
        grpc::CreateChannel(process.Address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, TokenRequest(10, 4000));
    v1::GenerateEvent event;
    while (!event.has_output()) ASSERT_TRUE(reader->Read(&event));
    process.Signal(SIGTERM);
    ASSERT_TRUE(Eventually([&] { return process.Log().find("draining") != std::string::npos; }));
    if (second_signal) process.Signal(SIGINT);
    // Before Wait: what nobody reads may be lost when the process's end resets the connection.
    const grpc::Status status = ReadAll(*reader).status;
    EXPECT_EQ(process.Wait(), second_signal ? 1 : 0);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    if (!second_signal) {
      EXPECT_EQ(status.error_message(), "the server has stopped");
    }
  }
}

}  // namespace
}  // namespace everlong
