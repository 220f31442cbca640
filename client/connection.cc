#include "client/connection.h"

#include <fmt/format.h>
#include <grpcpp/create_channel.h>

#include <chrono>
#include <utility>

namespace everlong {
namespace {

using Clock = std::chrono::system_clock;  // gRPC's deadlines

Clock::time_point After(double seconds) {
  return Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::shared_ptr<grpc::Channel> CreateChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // log probabilities of a long prompt are long
  arguments.SetMaxSendMessageSize(-1);     // the server's limit is the one that counts
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

// False at the deadline, or as soon as every address of the server has failed.
bool WaitUntilReady(grpc::Channel& channel, Clock::time_point deadline) {
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) return false;
    if (!channel.WaitForStateChange(state, deadline)) return false;
  }
}

// Why the channel is not ready. Only a call learns it: one that does not wait fails with the cause,
// which gRPC puts last, after the layers that met it.
std::string ReasonNotReady(grpc::Channel& channel, v1::Inference::Stub& stub,
                           double timeout_seconds) {
  const std::string too_late = fmt::format("no answer within {} s", timeout_seconds);
  if (channel.GetState(false) != GRPC_CHANNEL_TRANSIENT_FAILURE) return too_late;
  grpc::ClientContext context;
  context.set_deadline(After(0.5));
  v1::ListModelsResponse response;
  const grpc::Status status = stub.ListModels(&context, {}, &response);
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return too_late;
  const std::string& message = status.error_message();
  const size_t cause = message.rfind(": ");
  return cause == std::string::npos ? message : message.substr(cause + 2);
}

}  // namespace

void AddConnectionOptions(CLI::App& command, ConnectionOptions& options) {
  command.add_option("--server", options.server, "Address of the server")
      ->envname("EVERLONG_SERVER")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command.add_option("--connect-timeout", options.connect_timeout_seconds, "To reach the server")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS")
      ->capture_default_str();
  command.add_option("--timeout", options.timeout_seconds, "For a request; none by default")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS");
  command.add_option("--model", options.model, "Model; the server's by default")->type_name("NAME");
}

absl::StatusOr<std::unique_ptr<v1::Inference::Stub>> Connect(const ConnectionOptions& options) {
  if (options.server.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(
        fmt::format("--server: '{}' has no port; give HOST:PORT", options.server));
  }
  const auto channel = CreateChannel(options.server);
  auto stub = v1::Inference::NewStub(channel);
  if (!WaitUntilReady(*channel, After(options.connect_timeout_seconds))) {
    return absl::UnavailableError(fmt::format(
        "cannot reach {}: {}; start one with everlong-server --model PATH", options.server,
        ReasonNotReady(*channel, *stub, options.connect_timeout_seconds)));
  }
  return stub;
}

void SetDeadline(grpc::ClientContext& context, const ConnectionOptions& options) {
  if (options.timeout_seconds > 0) context.set_deadline(After(options.timeout_seconds));
}

}  // namespace everlong
