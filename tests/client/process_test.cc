// The program as a process: signals and closed pipes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>

#include "tests/client/fake_server.h"

extern char** environ;

namespace everlong {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class Process {
 public:
  // On a terminal all three standard streams are that; else input and output are pipes.
  explicit Process(std::vector<std::string> args, bool on_terminal = false) {
    args.insert(args.begin(), EVERLONG_BINARY);
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    on_terminal ? OpenTerminal(actions) : OpenPipes(actions);
    EXPECT_EQ(posix_spawn(&pid_, EVERLONG_BINARY, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    for (int& descriptor : childs_) Close(descriptor);
  }

  ~Process() {
    CloseInput();
    CloseOutput();
  }

  void Interrupt() const { kill(pid_, SIGINT); }
  void Send(const std::string& text) const {
    EXPECT_EQ(write(in_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void CloseInput() { Close(in_); }
  void CloseOutput() { Close(out_); }

  // What it writes up to `ending`, or up to its end.
  std::string ReadUntil(const std::string& ending) const {
    std::string text;
    for (char c = 0; !(text.ends_with(ending) && !ending.empty()) && read(out_, &c, 1) == 1;)
      text += c;
    return text;
  }

  // As waitpid gives it.
  int Wait() const {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    return status;
  }

 private:
  void OpenPipes(posix_spawn_file_actions_t& actions) {
    std::array<int, 2> in{};
    std::array<int, 2> out{};
    EXPECT_EQ(pipe2(in.data(), O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out.data(), O_CLOEXEC), 0);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    childs_ = {in[0], out[1]};
    in_ = in[1];
    out_ = out[0];
  }

  void OpenTerminal(posix_spawn_file_actions_t& actions) {
    out_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    in_ = fcntl(out_, F_DUPFD_CLOEXEC, 0);
    EXPECT_TRUE(grantpt(out_) == 0 && unlockpt(out_) == 0);
    std::array<char, 64> name{};
    EXPECT_EQ(ptsname_r(out_, name.data(), name.size()), 0);
    const int terminal = open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC);
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
      posix_spawn_file_actions_adddup2(&actions, terminal, stream);
    }
    childs_ = {terminal, -1};
  }

  static void Close(int& descriptor) {
    if (descriptor >= 0) close(descriptor);
    descriptor = -1;
  }

  pid_t pid_ = 0;
  std::array<int, 2> childs_ = {-1, -1};
  int in_ = -1;
  int out_ = -1;
};

// Answers the first `num_endless` calls with "begun." and no end, others with "done".
Script EndlessAtFirst(int num_endless) {
  return [n = 0, num_endless](const v1::GenerateRequest&, EventWriter& writer) mutable {
    if (n++ < num_endless) {
      writer.Write(Event("output { text: 'begun.' token_ids: 1 }"));
      EXPECT_TRUE(writer.WaitForCancel());
    } else {
      writer.Write(Event("output { text: 'done' token_ids: 1 }"));
    }
    return Ending{};
  };
}

TEST(ProcessTest, CtrlCEndsGenerateAsTheSignalWould) {
  FakeServer server;
  server.script = EndlessAtFirst(1);
  const Process process({"generate", "hi", "--server", server.address()});
  EXPECT_EQ(process.ReadUntil("begun."), "begun.");
  process.Interrupt();
  const int status = process.Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
}

TEST(ProcessTest, CtrlCEndsTheAnswerAndNotTheChat) {
  FakeServer server;
  server.script = EndlessAtFirst(1);
  Process process({"chat", "--server", server.address()});
  process.Send("one\n");
  EXPECT_EQ(process.ReadUntil("begun."), "begun.");
  process.Interrupt();
  EXPECT_EQ(process.ReadUntil("\n"), "\n");
  process.Send("two\n");
  EXPECT_EQ(process.ReadUntil("\n"), "done\n");
  process.CloseInput();
  EXPECT_EQ(process.Wait(), 0);
}

TEST(ProcessTest, CtrlCBetweenAnswersEndsAPipedChat) {
  FakeServer server;
  server.script = EndlessAtFirst(0);
  const Process process({"chat", "--server", server.address()});
  process.Send("one\n");
  EXPECT_EQ(process.ReadUntil("\n"), "done\n");
  process.Interrupt();
  const int status = process.Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
}

TEST(ProcessTest, CtrlCAtTheChatsPromptTellsHowToEnd) {
  FakeServer server;
  server.script = EndlessAtFirst(1);
  const Process process({"chat", "--server", server.address()}, /*on_terminal=*/true);
  EXPECT_THAT(process.ReadUntil("> "), StartsWith("bytes: /help lists the commands"));
  process.Interrupt();
  EXPECT_THAT(process.ReadUntil("> "), HasSubstr("/quit or Ctrl-D ends"));
  process.Send("one\n");
  EXPECT_THAT(process.ReadUntil("begun."), EndsWith("begun."));
  process.Interrupt();
  EXPECT_THAT(process.ReadUntil("> "), HasSubstr("(interrupted)"));
  process.Send("/quit\n");
  EXPECT_EQ(process.Wait(), 0);
}

TEST(ProcessTest, AReaderThatGoesAwayEndsTheCall) {
  FakeServer server;
  server.script = [](const v1::GenerateRequest&, EventWriter& writer) {
    while (writer.Write(Event("output { text: 'more' token_ids: 1 }"))) {
    }
    return Ending{};
  };
  Process process({"generate", "hi", "--server", server.address()});
  EXPECT_THAT(process.ReadUntil("more"), EndsWith("more"));
  process.CloseOutput();
  const int status = process.Wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE) << status;
}

}  // namespace
}  // namespace everlong
