#include "client/connection.h"

#include <fmt/format.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>

#include <atomic>
#include <utility>

#include "client/failure.h"
#include "everlong/v1/inference.grpc.pb.h"

namespace everlong {
namespace {

constexpr int kConnectTimeoutMs = 5000;

std::shared_ptr<grpc::Channel> CreateChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // log probabilities of a long prompt are long
  arguments.SetMaxSendMessageSize(-1);     // the server's limit is the one that counts
  // It also bounds how long gRPC tries to connect.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

std::string CheckAddress(const std::string& server) {
  const bool is_url = server.find("://") != std::string::npos;
  if (!is_url && server.find(':') != std::string::npos) return "";
  return fmt::format("'{}' is no address; give HOST:PORT", server);
}

// gRPC's own queues wait by a clock that may be set; this one never jumps.
gpr_timespec Deadline(GenerateCalls::Clock::time_point deadline) {
  using Clock = GenerateCalls::Clock;
  if (deadline == Clock::time_point::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const std::chrono::nanoseconds left = deadline - Clock::now();
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(left.count(), GPR_TIMESPAN));
}

}  // namespace

void AddConnectionOptions(CLI::App& command, ConnectionOptions& options) {
  command.add_option("--server", options.server, "Address of the server")
      ->envname("EVERLONG_SERVER")
      ->check(CheckAddress)
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command.add_option("--timeout", options.timeout_seconds, "Of a request; none by default")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS");
}

void AddModelOption(CLI::App& command, std::string& model) {
  command.add_option("--model", model, "Model; the server's own by default")->type_name("NAME");
}

struct Connection::Channel {
  explicit Channel(ConnectionOptions options)
      : options(std::move(options)),
        channel(CreateChannel(this->options.server)),
        stub(v1::Inference::NewStub(channel)) {}

  void SetDeadline(grpc::ClientContext& context) const {
    if (options.timeout_seconds <= 0) return;
    const std::chrono::duration<double> timeout(options.timeout_seconds);
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
  }

  absl::Status Result(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty() &&
        channel->GetState(/*try_to_connect=*/false) != GRPC_CHANNEL_READY) {
      return NotConnected(status.error_message());
    }
    return CallFailure(status.error_code(), status.error_message(), status.error_details());
  }

  // gRPC's message ends with the cause, after the layers that met it.
  absl::Status NotConnected(const std::string& message) const {
    const size_t layer = message.rfind(": ");
    const std::string cause = layer == std::string::npos ? message : message.substr(layer + 2);
    return absl::UnavailableError(
        fmt::format("no connection to {} ({}); start a server with `everlong-server --model PATH` "
                    "or name another with --server HOST:PORT",
                    options.server, cause));
  }

  template <class Request, class Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*,
                                                                             const Request&,
                                                                             Response*),
                                 const Request& request) const {
    grpc::ClientContext context;
    SetDeadline(context);
    Response response;
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (!status.ok()) return Result(status);
    return response;
  }

  const ConnectionOptions options;
  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::Inference::Stub> stub;
};

Connection::Connection(const ConnectionOptions& options)
    : channel_(std::make_unique<Channel>(options)) {}

Connection::~Connection() = default;

absl::StatusOr<v1::TokenizeResponse> Connection::Tokenize(const v1::TokenizeRequest& request) {
  return channel_->Unary(&v1::Inference::Stub::Tokenize, request);
}

absl::StatusOr<v1::DetokenizeResponse> Connection::Detokenize(
    const v1::DetokenizeRequest& request) {
  return channel_->Unary(&v1::Inference::Stub::Detokenize, request);
}

absl::StatusOr<v1::ListModelsResponse> Connection::ListModels() {
  return channel_->Unary(&v1::Inference::Stub::ListModels, v1::ListModelsRequest());
}

absl::StatusOr<v1::Model> Connection::GetModel(const std::string& name) {
  v1::GetModelRequest request;
  request.set_model(name);
  return channel_->Unary(&v1::Inference::Stub::GetModel, request);
}

struct GenerateCalls::Call {
  enum class Waiting { kStart, kEvent, kEnd };  // for what; its address is the operation's tag

  // Asks for what follows an operation that completed.
  void Continue(bool ok) {
    waiting = ok ? Waiting::kEvent : Waiting::kEnd;
    if (ok) {
      reader->Read(&event, this);
    } else {
      reader->Finish(&status, this);
    }
  }

  int64_t id = 0;
  Waiting waiting = Waiting::kStart;
  grpc::ClientContext context;
  v1::GenerateEvent event;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateEvent>> reader;
};

struct GenerateCalls::Queue {
  grpc::CompletionQueue queue;
};

GenerateCalls::GenerateCalls(Connection& connection)
    : channel_(*connection.channel_), queue_(std::make_unique<Queue>()) {}

GenerateCalls::~GenerateCalls() {
  CancelAll();
  while (!calls_.empty()) Next();
  queue_->queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_->queue.Next(&tag, &ok)) {
  }
}

void GenerateCalls::Start(int64_t id, const v1::GenerateRequest& request) {
  auto call = std::make_unique<Call>();
  call->id = id;
  channel_.SetDeadline(call->context);
  call->reader = channel_.stub->PrepareAsyncGenerate(&call->context, request, &queue_->queue);
  call->reader->StartCall(call.get());
  std::lock_guard lock(mutex_);
  if (cancelled_) call->context.TryCancel();
  calls_[id] = std::move(call);
}

std::optional<GenerateCalls::Arrival> GenerateCalls::Next(Clock::time_point deadline) {
  void* tag = nullptr;
  bool ok = false;
  while (queue_->queue.AsyncNext(&tag, &ok, Deadline(deadline)) ==
         grpc::CompletionQueue::GOT_EVENT) {
    Call& call = *static_cast<Call*>(tag);
    Arrival arrival{.id = call.id};
    switch (call.waiting) {
      case Call::Waiting::kStart:
        call.Continue(ok);
        continue;
      case Call::Waiting::kEvent:
        arrival.event = std::move(call.event);
        call.Continue(ok);
        if (ok) return arrival;
        continue;
      case Call::Waiting::kEnd:
        arrival.end = channel_.Result(call.status);
        std::lock_guard lock(mutex_);
        calls_.erase(call.id);
        return arrival;
    }
  }
  return std::nullopt;
}

void GenerateCalls::CancelAll() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  for (const auto& [id, call] : calls_) call->context.TryCancel();
}

GenerateEnd Generate(Connection& connection, const v1::GenerateRequest& request,
                     Interrupts& interrupts,
                     const std::function<bool(const v1::GenerateEvent&)>& on_event) {
  GenerateCalls calls(connection);
  std::atomic<bool> interrupted = false;
  const Interrupts::Watch watch(interrupts, [&] {
    interrupted = true;
    calls.CancelAll();
  });
  calls.Start(0, request);
  for (bool wanted = true;;) {
    const std::optional<GenerateCalls::Arrival> arrival = calls.Next();
    if (arrival->end) return {*arrival->end, interrupted};
    if (!wanted) continue;
    wanted = on_event(arrival->event);
    if (!wanted) calls.CancelAll();
  }
}

}  // namespace everlong
