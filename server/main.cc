// everlong-server. Exit status: 0 after a drain, 1 where start-up failed or the device did, 2 wrong
// usage.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <future>
#include <iostream>

#include "absl/time/clock.h"
#include "fmt/format.h"
#include "server/lifetime.h"
#include "server/options.h"
#include "server/server.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace everlong {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr timespec kNoTime = {};

void StartLog(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("everlong"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
  spdlog::set_level(spdlog::level::from_str(level));
}

// Blocks SIGTERM and SIGINT in this thread and those it starts: they are waited for instead.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

std::string Summary(const ServerOptions& options, const ServedModel& served) {
  const Engine& engine = *served.engine;
  const ModelConfig& config = engine.config();
  const EngineStats stats = engine.Stats();
  return fmt::format(
      "{} from {}: {}, {} layers, hidden {}, {} query and {} KV heads of {}, vocabulary {}; "
      "trained "
      "on {} tokens, serving {}; KV cache {} MiB = {} tokens at {} bytes each; device {}",
      served.name, options.model, config.architecture, config.num_layers, config.hidden_size,
      config.q_heads, config.kv_heads, config.head_dim, config.vocab_size, config.trained_length,
      engine.options().max_context, stats.kv_pages_total * stats.kv_page_bytes >> 20,
      stats.kv_pages_total * kPageTokens, engine.kv_bytes_per_token(), served.device);
}

absl::Status LoadAndServe(const ServerOptions& options, Server& server) {
  auto served = LoadModel(options);
  if (!served.ok()) return served.status();
  spdlog::info("{}", Summary(options, *served));
  const std::string warning = served->engine->attention_warning();
  if (!warning.empty()) spdlog::warn("{}", warning);
  server.Serve(*std::move(served));
  spdlog::info("serving gRPC on {}, metrics on http://{}/metrics", server.grpc_address(),
               server.metrics_address());
  return absl::OkStatus();
}

int Failed(const absl::Status& status) {
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

int Run(const ServerOptions& options) {
  const sigset_t signals = BlockSignals();
  // A file left by an earlier process must not be taken for this one's.
  if (!options.ready_file.empty()) unlink(options.ready_file.c_str());
  const auto server = Server::Listen(options);
  if (!server.ok()) return Failed(server.status());
  auto loading =
      std::async(std::launch::async, LoadAndServe, std::cref(options), std::ref(**server));
  while (loading.wait_for(kPoll) != std::future_status::ready) {
    if (sigtimedwait(&signals, nullptr, &kNoTime) > 0) _exit(0);  // nothing runs yet
  }
  absl::Status status = loading.get();
  // Only now: whoever waits for the file may send a signal next, which has to drain.
  if (status.ok() && !options.ready_file.empty()) {
    status = WriteReadyFile(options.ready_file, **server);
  }
  // Without destructors: the metrics' threads would hold the process up for two seconds.
  _exit(status.ok() ? ServeUntilSignalled(**server, signals, options.drain) : Failed(status));
}

int Main(int argc, char** argv) {
  const auto options = ParseOptions({argv + 1, argv + argc}, std::getenv, std::cout);
  if (!options.ok()) {
    fmt::print(stderr, "everlong-server: {}\nSee everlong-server --help.\n",
               std::string(options.status().message()));
    return 2;
  }
  if (!options->has_value()) return 0;
  StartLog((*options)->log_level);
  return Run(**options);
}

}  // namespace
}  // namespace everlong

int main(int argc, char** argv) {
  return everlong::Main(argc, argv);
}
