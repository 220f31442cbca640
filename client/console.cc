#include "client/console.h"

#include <ostream>
#include <utility>

namespace everlong {

bool Interrupts::Raise() {
  std::lock_guard lock(mutex_);
  if (!handler_) return false;
  handler_();
  return true;
}

Interrupts::Watch::Watch(Interrupts& interrupts, std::function<void()> handler)
    : interrupts_(interrupts) {
  std::lock_guard lock(interrupts_.mutex_);
  previous_ = std::exchange(interrupts_.handler_, std::move(handler));
}

Interrupts::Watch::~Watch() {
  std::lock_guard lock(interrupts_.mutex_);
  interrupts_.handler_ = std::move(previous_);
}

int FailUsage(Console& console, const absl::Status& status) {
  console.err << "everlong: " << status.message() << std::endl;
  return kExitUsage;
}

int Finish(Console& console, const absl::Status& status) {
  if (!console.out.flush()) {
    console.err << "everlong: cannot write to standard output" << std::endl;
  } else if (!status.ok()) {
    console.err << "everlong: " << absl::StatusCodeToString(status.code()) << ": "
                << status.message() << std::endl;
  } else {
    return kExitOk;
  }
  return kExitFailed;
}

void StatusLine::Show(std::string_view text) {
  if (!console_.err_is_terminal) return;
  console_.err << "\r\033[K" << text << std::flush;
  shown_ = true;
}

void StatusLine::Clear() {
  if (std::exchange(shown_, false)) console_.err << "\r\033[K" << std::flush;
}

}  // namespace everlong
