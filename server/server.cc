#include "server/server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "absl/time/clock.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "server/device.h"
#include "server/inference_service.h"
#include "server/metrics.h"
#include "spdlog/spdlog.h"

namespace everlong {
namespace {

// A peer that vanished without a word is noticed after about half a minute.
constexpr int kKeepaliveMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinClientPingMs = 10'000;
// For the last messages of calls that have ended.
constexpr absl::Duration kLastWords = absl::Seconds(2);

std::string WithPort(const std::string& address, int port) {
  return fmt::format("{}:{}", address.substr(0, address.rfind(':')), port);
}

// What the scrape asks; lives as long as the endpoint.
class Scrape final : public prometheus::Collectable {
 public:
  explicit Scrape(const CallCounts* counts) : counts_(counts) {}

  void Serve(const Engine* engine) { engine_ = engine; }

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    if (const Engine* engine = engine_) families = ToMetrics(engine->Stats(), *counts_);
    families.push_back(BuildInfo(EVERLONG_VERSION));
    return families;
  }

 private:
  const CallCounts* counts_;
  std::atomic<const Engine*> engine_{nullptr};
};

class NetworkServer final : public Server {
 public:
  NetworkServer() : scrape_(std::make_shared<Scrape>(&service_.counts())) {}
  ~NetworkServer() override { Stop(); }  // the metrics' threads take up to two seconds to end

  absl::Status ListenGrpc(const ServerOptions& options);
  absl::Status ListenMetrics(const ServerOptions& options);

  const std::string& grpc_address() const override { return grpc_address_; }
  const std::string& metrics_address() const override { return metrics_address_; }
  void Serve(ServedModel served) override;
  void Drain() override;
  bool Idle() const override { return served_.engine->Idle(); }
  bool Healthy() const override { return served_.engine->Healthy(); }
  void Stop() override;

 private:
  void SetHealth(bool serving);

  ServedModel served_;  // engine: null until Serve
  InferenceService service_;
  std::shared_ptr<Scrape> scrape_;
  std::string grpc_address_;
  std::string metrics_address_;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

absl::Status NetworkServer::ListenGrpc(const ServerOptions& options) {
  // What goes wrong comes back as a status; their own lines are for debugging.
  google::protobuf::SetLogHandler([](google::protobuf::LogLevel, const char*, int,
                                     const std::string& line) { spdlog::debug("{}", line); });
  gpr_set_log_function([](gpr_log_func_args* line) { spdlog::debug("{}", line->message); });
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  // Two servers on one port would share the requests at random.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
  grpc_ = builder.BuildAndStart();
  if (grpc_ == nullptr || port == 0) {
    return absl::UnavailableError(fmt::format("--listen: cannot bind {}", options.listen));
  }
  SetHealth(false);
  grpc_address_ = WithPort(options.listen, port);
  return absl::OkStatus();
}

absl::Status NetworkServer::ListenMetrics(const ServerOptions& options) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(options.metrics_listen);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        fmt::format("--metrics-listen: cannot bind {}: {}", options.metrics_listen, error.what()));
  }
  exposer_->RegisterCollectable(scrape_);
  metrics_address_ = WithPort(options.metrics_listen, exposer_->GetListeningPorts().at(0));
  return absl::OkStatus();
}

void NetworkServer::SetHealth(bool serving) {
  grpc::HealthCheckServiceInterface* health = grpc_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::Inference::service_full_name(), serving);
}

void NetworkServer::Serve(ServedModel served) {
  served_ = std::move(served);
  served_.engine->Start();
  scrape_->Serve(served_.engine.get());
  service_.Serve(&served_);
  SetHealth(true);
}

void NetworkServer::Drain() {
  SetHealth(false);
  if (served_.engine != nullptr) served_.engine->Drain();
}

void NetworkServer::Stop() {
  if (grpc_ == nullptr) return;
  SetHealth(false);
  if (served_.engine != nullptr) served_.engine->Stop();
  const absl::Time deadline = absl::Now() + kLastWords;
  while (service_.counts().open() > 0 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  // Without a deadline it would wait for clients to close their idle connections.
  grpc_->Shutdown(std::chrono::system_clock::now());
  grpc_->Wait();
  grpc_.reset();
}

}  // namespace

absl::StatusOr<ServedModel> LoadModel(const ServerOptions& options) {
  ASSIGN_OR_RETURN(auto kernels, OpenDevice(options));
  ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(options.model));
  ServedModel served;
  // A path may end in "/" or "/.".
  const auto path = std::filesystem::weakly_canonical(options.model);
  served.name = path.filename().string();
  served.device = kernels->description();
  ASSIGN_OR_RETURN(served.engine,
                   Engine::Create(std::move(checkpoint), std::move(kernels), options.engine));
  return served;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Listen(const ServerOptions& options) {
  auto server = std::make_unique<NetworkServer>();
  RETURN_IF_ERROR(server->ListenGrpc(options));
  RETURN_IF_ERROR(server->ListenMetrics(options));
  return server;
}

absl::Status WriteReadyFile(const std::string& path, const Server& server) {
  const nlohmann::ordered_json json = {{"grpc", server.grpc_address()},
                                       {"metrics", server.metrics_address()}};
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary, std::ios::trunc);
  file << json.dump() << '\n';
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(fmt::format("--ready-file: cannot write {}", path));
  }
  return absl::OkStatus();
}

}  // namespace everlong
