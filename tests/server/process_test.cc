// The program itself: exit status, messages, signals, the ready file.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "everlong/v1/inference.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "tests/server/test_server.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

// One everlong-server on the checkpoint of the repository, on free ports.
class ServerProcess {
 public:
  explicit ServerProcess(std::vector<std::string> arguments) {
    directory_ = ::testing::TempDir() + "/everlong-test-XXXXXX";
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    arguments.insert(arguments.begin(), {EVERLONG_SERVER, "--ready-file", ready_file()});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, (directory_ + "/log").c_str(),
                                     O_CREAT | O_WRONLY, 0600);
    EXPECT_EQ(posix_spawn(&pid_, EVERLONG_SERVER, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }

  ~ServerProcess() {
    if (pid_ > 0) {
      Signal(SIGKILL);
      Wait();
    }
    std::filesystem::remove_all(directory_);
  }

  void Signal(int signal) { kill(pid_, signal); }

  // The exit status, or minus the signal that ended it.
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  bool Ready() const { return std::filesystem::exists(ready_file()); }
  std::string Address() const { return nlohmann::json::parse(std::ifstream(ready_file()))["grpc"]; }
  std::string Log() const {
    std::stringstream text;
    text << std::ifstream(directory_ + "/log").rdbuf();
    return text.str();
  }

 private:
  std::string ready_file() const { return directory_ + "/ready.json"; }

  std::string directory_;
  pid_t pid_ = -1;
};

std::vector<std::string> Serving(std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"--model",     EVERLONG_MODEL,     "--listen",
                                        "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

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
    EXPECT_EQ(process.Wait(), second_signal ? 1 : 0);
    const grpc::Status status = ReadAll(*reader).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    if (!second_signal) {
      EXPECT_EQ(status.error_message(), "the server has stopped");
    }
  }
}

}  // namespace
}  // namespace everlong
