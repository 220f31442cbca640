// The server as its clients see it: the only module that knows gRPC.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/console.h"
#include "everlong/v1/inference.pb.h"

namespace everlong {

struct ConnectionOptions {
  std::string server = "127.0.0.1:50051";
  double timeout_seconds = 0;  // of each request; 0: none
};

// Adds --server and --timeout.
void AddConnectionOptions(CLI::App& command, ConnectionOptions& options);

// Adds --model; left empty it is the server's own.
void AddModelOption(CLI::App& command, std::string& model);

// A channel to a server; the first call connects. Every error is one line for the user. Calls may
// be made from any thread.
class Connection {
 public:
  explicit Connection(const ConnectionOptions& options);
  ~Connection();

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request);
  absl::StatusOr<v1::ListModelsResponse> ListModels();
  absl::StatusOr<v1::Model> GetModel(const std::string& name);

 private:
  friend class GenerateCalls;
  struct Channel;
  const std::unique_ptr<Channel> channel_;
};

// Generate calls in flight, driven by the thread that calls Start and Next.
class GenerateCalls {
 public:
  using Clock = std::chrono::steady_clock;

  explicit GenerateCalls(Connection& connection);
  ~GenerateCalls();  // cancels what still runs

  // `id` names the call in what Next returns; no two in flight have the same.
  void Start(int64_t id, const v1::GenerateRequest& request);

  struct Arrival {
    int64_t id = 0;
    v1::GenerateEvent event;
    std::optional<absl::Status> end;  // set where the call ended, in place of an event
  };
  // Waits for the next event or end of any call; nothing where `deadline` passes first.
  std::optional<Arrival> Next(Clock::time_point deadline = Clock::time_point::max());

  // Cancels all calls, and each that is started later: they end with CANCELLED. From any thread.
  void CancelAll();

 private:
  struct Call;
  struct Queue;

  Connection::Channel& channel_;
  const std::unique_ptr<Queue> queue_;
  std::mutex mutex_;  // guards what follows; what a call holds is the driving thread's
  bool cancelled_ = false;
  std::map<int64_t, std::unique_ptr<Call>> calls_;
};

struct GenerateEnd {
  absl::Status status;
  bool interrupted = false;  // by Ctrl-C, which also cancelled the call
};

// Runs one call to its end, giving its events in order; cancels it where `on_event` returns false.
GenerateEnd Generate(Connection& connection, const v1::GenerateRequest& request,
                     Interrupts& interrupts,
                     const std::function<bool(const v1::GenerateEvent&)>& on_event);

}  // namespace everlong
