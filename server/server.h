// The process's network side: gRPC with health and reflection, and /metrics.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/options.h"
#include "server/served_model.h"

namespace everlong {

// Loads the checkpoint and readies its engine as the options say. Errors name what failed and why.
absl::StatusOr<ServedModel> LoadModel(const ServerOptions& options);

// Any thread.
class Server {
 public:
  // Binds both addresses. Until Serve, health is NOT_SERVING and requests get UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Server>> Listen(const ServerOptions& options);
  virtual ~Server() = default;  // as Stop, and closes the metrics' address

  // host:port, with the port that was bound.
  virtual const std::string& grpc_address() const = 0;
  virtual const std::string& metrics_address() const = 0;

  // Starts the engine and answers requests from now on. Once.
  virtual void Serve(ServedModel served) = 0;

  // Health turns NOT_SERVING and new requests get UNAVAILABLE; Idle tells when the running ones
  // have ended.
  virtual void Drain() = 0;
  virtual bool Idle() const = 0;

  // False after a device fault: every request got INTERNAL and the process should exit.
  virtual bool Healthy() const = 0;

  // Ends running requests with UNAVAILABLE and closes all gRPC connections. Idempotent.
  virtual void Stop() = 0;
};

// {"grpc":"127.0.0.1:41234","metrics":"127.0.0.1:41235"}, whole or not at all.
absl::Status WriteReadyFile(const std::string& path, const Server& server);

}  // namespace everlong
