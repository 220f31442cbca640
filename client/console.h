// What a command reads and writes: standard input, output and error, and Ctrl-C. Handed in, so that
// a test can run the whole program on strings.
#pragma once

#include <functional>
#include <iosfwd>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace everlong {

enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,
  kExitUsage = 2,
  kExitInterrupted = 130,  // the program is to end as by SIGINT
};

// Ctrl-C as an event.
class Interrupts {
 public:
  // Runs the handler on the calling thread. False where nobody watches: the process should end.
  bool Raise();

  // Watches from construction to destruction, in place of the watch that was there before. Waits
  // for a handler that is running; the handler must not block.
  class Watch {
   public:
    Watch(Interrupts& interrupts, std::function<void()> handler);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Interrupts& interrupts_;
    std::function<void()> previous_;
  };

 private:
  std::mutex mutex_;
  std::function<void()> handler_;
};

struct Console {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  Interrupts& interrupts;
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
};

// Says on standard error what is wrong with the command line or the input; returns the exit status.
int FailUsage(Console& console, const absl::Status& status);

// The exit status of a command whose request ended with `status` and whose output is written: says
// on standard error which of the two failed, of a request with the code's name.
int Finish(Console& console, const absl::Status& status);

// One line on standard error that changes in place; nothing where that is no terminal.
class StatusLine {
 public:
  explicit StatusLine(Console& console) : console_(console) {}
  ~StatusLine() { Clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  void Show(std::string_view text);
  void Clear();

 private:
  Console& console_;
  bool shown_ = false;
};

}  // namespace everlong
