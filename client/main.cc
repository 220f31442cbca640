#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"

namespace {

// Ends the process as Ctrl-C would have.
void DieOfInterrupt(const sigset_t& interrupt) {
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
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  std::thread([interrupt, &interrupts] {
    for (int signal = 0; sigwait(&interrupt, &signal) == 0;) {
      if (!interrupts.Raise()) DieOfInterrupt(interrupt);
    }
  }).detach();
}

}  // namespace

int main(int argc, char** argv) {
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
  return everlong::RunClient(std::vector<std::string>(argv + 1, argv + argc), console);
}
