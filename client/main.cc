#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"

namespace {

sigset_t InterruptSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

// Ends the process as Ctrl-C would have, so that a shell's loop around it ends too.
void DieOfInterrupt() {
  const sigset_t interrupt = InterruptSet();
  std::signal(SIGINT, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &interrupt, nullptr);
  std::raise(SIGINT);
}

// Turns SIGINT into calls of Raise on a thread of its own. To be called while the process has one
// thread: later ones inherit that the signal is blocked.
void ForwardInterrupts(everlong::Interrupts& interrupts) {
  struct sigaction current = {};
  sigaction(SIGINT, nullptr, &current);
  if (current.sa_handler == SIG_IGN) return;  // a background job of a script
  const sigset_t interrupt = InterruptSet();
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  std::thread([interrupt, &interrupts] {
    for (int signal = 0; sigwait(&interrupt, &signal) == 0;) {
      if (!interrupts.Raise()) DieOfInterrupt();
    }
  }).detach();
}

}  // namespace

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*replace=*/0);  // its log would repeat what we report
  std::signal(SIGPIPE, SIG_DFL);  // a closed standard output ends the program quietly
  static auto& interrupts = *new everlong::Interrupts;  // its thread outlives main
  ForwardInterrupts(interrupts);
  everlong::Console console{.in = std::cin,
                            .out = std::cout,
                            .err = std::cerr,
                            .interrupts = interrupts,
                            .in_is_terminal = isatty(STDIN_FILENO) == 1,
                            .out_is_terminal = isatty(STDOUT_FILENO) == 1,
                            .err_is_terminal = isatty(STDERR_FILENO) == 1};
  const std::vector<std::string> args(argv + 1, argv + argc);
  const int code = everlong::RunClient(args, console);
  if (code == everlong::kExitInterrupted) DieOfInterrupt();
  return code;
}
