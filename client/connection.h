// A channel to the server and the options every command has for it.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "everlong/v1/inference.grpc.pb.h"

namespace everlong {

struct ConnectionOptions {
  std::string server = "127.0.0.1:50051";
  double connect_timeout_seconds = 5;
  double timeout_seconds = 0;  // of a request; 0: none
  std::string model;           // empty: the server's
};

// Adds --server, --connect-timeout, --timeout and --model.
void AddConnectionOptions(CLI::App& command, ConnectionOptions& options);

// Connects, or says within the connect timeout why it cannot: INVALID_ARGUMENT for an address that
// is none, UNAVAILABLE otherwise.
absl::StatusOr<std::unique_ptr<v1::Inference::Stub>> Connect(const ConnectionOptions& options);

// Gives the call the deadline that the options ask for.
void SetDeadline(grpc::ClientContext& context, const ConnectionOptions& options);

}  // namespace everlong
