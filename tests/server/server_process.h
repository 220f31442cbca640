// everlong-server as a process of its own, on the checkpoint of the repository.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace everlong {

// Killed, if it still runs, at the end. Errors of the test's own are failures of the test.
class ServerProcess {
 public:
  // `environment`: NAME=VALUE, beside the test's own.
  explicit ServerProcess(std::vector<std::string> arguments,
                         const std::string& program = EVERLONG_SERVER,
                         std::vector<std::string> environment = {});
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  void Signal(int signal);
  // The exit status, or minus the signal that ended it.
  int Wait();

  bool Ready() const;
  std::string Address() const;  // of gRPC, once it is ready
  std::string Log() const;

 private:
  std::string ready_file() const { return directory_ + "/ready.json"; }

  std::string directory_;
  pid_t pid_ = -1;
};

// Arguments that serve the checkpoint on free ports, then `more`.
std::vector<std::string> Serving(std::vector<std::string> more = {});

}  // namespace everlong
