#include "client/console.h"

#include <istream>
#include <ostream>
#include <string>
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
  interrupts_.handler_ = std::move(handler);
}

Interrupts::Watch::~Watch() {
  std::lock_guard lock(interrupts_.mutex_);
  interrupts_.handler_ = nullptr;
}

bool WriteOut(Console& console, std::string_view text) {
  console.out << text << std::flush;
  return console.out.good();
}

int Fail(Console& console, ExitCode code, std::string_view message) {
  console.err << "everlong: " << message << std::endl;
  return code;
}

int Fail(Console& console, const absl::Status& status) {
  const ExitCode code = absl::IsInvalidArgument(status) ? kExitUsage : kExitFailed;
  return Fail(console, code, std::string(status.message()));
}

}  // namespace everlong
