// What the server is started with. One table describes every option; flags, environment variables
// and the YAML file are three readers of it.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"

namespace everlong {

struct ServerOptions {
  std::string model;                 // a path or a name, as Checkpoint::Open takes it
  std::string listen;                // host:port of gRPC; port 0 takes a free one
  std::string metrics_listen;        // host:port of /metrics
  std::string device;                // "cpu", "cuda" or "auto"
  int32_t threads = 0;               // of the CPU backend; 0: one per core
  std::optional<DType> weight_type;  // of CUDA's
  std::string ready_file;            // "": none
  absl::Duration drain;              // for running requests after SIGTERM
  int32_t max_message_bytes = 0;
  std::string log_level;
  EngineOptions engine;
};

struct Option {
  std::string name;         // without dashes, e.g. "max-context"
  std::string placeholder;  // of its value
  std::string fallback;     // what an absent option means, in the same notation; "": nothing
  std::string help;
  // Errors say what is wrong with the value; the caller adds where it came from.
  std::function<absl::Status(const std::string& value, ServerOptions& options)> read;
};

const std::vector<Option>& OptionTable();

// The environment variable of an option: EVERLONG_MAX_CONTEXT for max-context.
std::string EnvironmentName(const Option& option);

using Environment = std::function<const char*(const char*)>;  // like getenv

// A flag goes before the environment, that before the file of --config, that before the default.
// Returns nothing where --help or --version was all that was asked: `out` has the answer.
// INVALID_ARGUMENT names the flag, the variable, or file and line.
absl::StatusOr<std::optional<ServerOptions>> ParseOptions(std::vector<std::string> arguments,
                                                          const Environment& environment,
                                                          std::ostream& out);

// "4GiB", "512MiB", "64KiB", "1TiB" or plain bytes.
absl::StatusOr<int64_t> ParseSize(const std::string& text);

}  // namespace everlong
