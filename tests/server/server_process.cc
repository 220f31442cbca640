#include "tests/server/server_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "nlohmann/json.hpp"

namespace everlong {
namespace {

// For posix_spawn; valid as long as the strings.
std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

ServerProcess::ServerProcess(std::vector<std::string> arguments, const std::string& program,
                             std::vector<std::string> environment)
    : directory_(::testing::TempDir() + "/everlong-test-XXXXXX") {
  EXPECT_NE(mkdtemp(directory_.data()), nullptr);
  arguments.insert(arguments.begin(), {program, "--ready-file", ready_file()});
  // The first of two values of a name counts.
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.emplace_back(*variable);
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, (directory_ + "/log").c_str(),
                                   O_CREAT | O_WRONLY, 0600);
  EXPECT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, Pointers(arguments).data(),
                        Pointers(environment).data()),
            0);
  posix_spawn_file_actions_destroy(&actions);
}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    Wait();
  }
  std::filesystem::remove_all(directory_);
}

void ServerProcess::Signal(int signal) {
  kill(pid_, signal);
}

int ServerProcess::Wait() {
  int status = 0;
  waitpid(std::exchange(pid_, -1), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool ServerProcess::Ready() const {
  return std::filesystem::exists(ready_file());
}

std::string ServerProcess::Address() const {
  return nlohmann::json::parse(std::ifstream(ready_file()))["grpc"];
}

std::string ServerProcess::Log() const {
  std::stringstream text;
  text << std::ifstream(directory_ + "/log").rdbuf();
  return text.str();
}

std::vector<std::string> Serving(std::vector<std::string> more) {
  std::vector<std::string> arguments = {"--model",     EVERLONG_MODEL,     "--listen",
                                        "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

}  // namespace everlong
