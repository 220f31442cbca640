// The program itself on a device that fails: the server as installed, which opens the module of
// faulty_device.cc as it would CUDA's.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "everlong/v1/inference.grpc.pb.h"
#include "tests/server/server_process.h"
#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

class DeviceFaultTest : public ::testing::Test {
 protected:
  DeviceFaultTest()
      : file_(::testing::TempDir() + "/everlong-fault-" + std::to_string(getpid())),
        process_(Serving({"--device", "cuda"}), EVERLONG_FAULTY_DEVICE "/everlong-server",
                 {"EVERLONG_FAULT=" + file_, "LD_LIBRARY_PATH=" EVERLONG_FAULTY_DEVICE}) {}
  ~DeviceFaultTest() override { std::filesystem::remove(file_); }

  void SetUp() override {
    ASSERT_TRUE(Eventually([&] { return process_.Ready(); })) << process_.Log();
    channel_ = grpc::CreateChannel(process_.Address(), grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }

  // The device fails that way from now on. The file is there at once, with all its content.
  void Fail(const std::string& kind) {
    std::ofstream(file_ + ".tmp") << kind;
    std::filesystem::rename(file_ + ".tmp", file_);
  }

  // A request that has begun to answer.
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> Begin(grpc::ClientContext& context) {
    auto reader = stub_->Generate(&context, TokenRequest(10, 4000));
    v1::GenerateEvent event;
    while (!event.has_output()) {
      if (!reader->Read(&event)) break;
    }
    EXPECT_TRUE(event.has_output());
    return reader;
  }

  std::string file_;
  ServerProcess process_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// What Health/Watch tells, until the server ends it.
std::vector<std::string> WatchHealth(grpc::Channel& channel, std::atomic<bool>& watching) {
  const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Watch",
                                         grpc::internal::RpcMethod::SERVER_STREAMING);
  const grpc::Slice nothing("");
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ClientContext context;
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(&channel, method, &context,
                                                                    request));
  std::vector<std::string> updates;
  for (grpc::ByteBuffer update; reader->Read(&update); watching = true) {
    grpc::Slice slice;
    EXPECT_TRUE(update.DumpToSingleSlice(&slice).ok());
    updates.emplace_back(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  reader->Finish();
  return updates;
}

TEST_F(DeviceFaultTest, AFaultEndsRequestsWithInternalHealthAndTheProcess) {
  std::atomic<bool> watching{false};
  std::vector<std::string> health;
  std::thread watch([&] { health = WatchHealth(*channel_, watching); });
  EXPECT_TRUE(Eventually([&] { return watching.load(); }));
  grpc::ClientContext contexts[2];
  const auto first = Begin(contexts[0]);
  const auto second = Begin(contexts[1]);
  Fail("fault");
  for (grpc::ClientReader<v1::GenerateEvent>* reader : {first.get(), second.get()}) {
    const grpc::Status status = ReadAll(*reader).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(status.error_message(), HasSubstr("an injected fault"));
  }
  EXPECT_EQ(process_.Wait(), 1);
  EXPECT_THAT(process_.Log(), HasSubstr("the device has failed; exiting for a restart"));
  watch.join();
  ASSERT_FALSE(health.empty());
  EXPECT_EQ(health.front(), "\x08\x01");  // SERVING
  EXPECT_EQ(health.back(), "\x08\x02");   // NOT_SERVING
}

TEST_F(DeviceFaultTest, MemoryThatRunsOutEndsTheRequestAndNothingElse) {
  grpc::ClientContext context;
  const auto reader = Begin(context);
  Fail("memory");
  const grpc::Status status = ReadAll(*reader).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("memory ran out in a step"));

  grpc::ClientContext later;
  const auto answer = ReadAll(*stub_->Generate(&later, TokenRequest(10, 20)));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.tokens().size(), 20u);
  process_.Signal(SIGTERM);
  EXPECT_EQ(process_.Wait(), 0);
}

}  // namespace
}  // namespace everlong
