// What a command reads and writes: standard input, output and error, and Ctrl-C. Handed in, so that
// a test can run the whole program on strings.
#pragma once

#include <functional>
#include <iosfwd>
#include <mutex>
#include <string_view>

#include "absl/status/status.h"

namespace everlong {

enum ExitCode { kExitOk = 0, kExitFailed = 1, kExitUsage = 2 };

// Ctrl-C as an event. At most one handler watches at a time.
class Interrupts {
 public:
  // Runs the handler on the calling thread. False where nobody watches: the process should end.
  bool Raise();

  // Watches from construction to destruction, which waits for a handler that is running. The
  // handler must not block.
  class Watch {
   public:
    Watch(Interrupts& interrupts, std::function<void()> handler);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Interrupts& interrupts_;
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

// Writes and flushes at once. False once standard output takes no more.
bool WriteOut(Console& console, std::string_view text);

// Prints "everlong: message" on a line of standard error; returns `code`.
int Fail(Console& console, ExitCode code, std::string_view message);

// The same for an error found before a request was sent: INVALID_ARGUMENT is wrong usage.
int Fail(Console& console, const absl::Status& status);

}  // namespace everlong
