#include "tests/server/test_server.h"

#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <thread>

#include "spdlog/spdlog.h"
#include "tests/engine/hooked_kernels.h"

namespace everlong {
namespace {

// The tiny checkpoint with a chat template.
class ChattyCheckpoint : public TinyCheckpoint {
 public:
  explicit ChattyCheckpoint(std::string chat_template)
      : TinyCheckpoint(1), chat_template_(std::move(chat_template)) {}
  const std::string& chat_template() const override { return chat_template_; }

 private:
  std::string chat_template_;
};

std::string ToString(const grpc::ByteBuffer& bytes) {
  grpc::Slice slice;
  if (!bytes.Valid() || !bytes.DumpToSingleSlice(&slice).ok()) return "";
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

}  // namespace

std::string Answer::text(int32_t sample) const {
  std::string all;
  for (const auto& event : events) {
    if (event.output().sample() == sample) all += event.output().text();
  }
  return all;
}

std::vector<int32_t> Answer::tokens(int32_t sample) const {
  std::vector<int32_t> all;
  for (const auto& event : events) {
    if (!event.has_output() || event.output().sample() != sample) continue;
    all.insert(all.end(), event.output().token_ids().begin(), event.output().token_ids().end());
  }
  return all;
}

ServerOptions TestServerOptions() {
  auto options = *ParseOptions(
      {"--model", "tiny", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
       "--max-batch-tokens", "128", "--max-running", "8", "--kv-type", "f32"},
      [](const char*) { return nullptr; }, std::cout);
  return *options;
}

TestServer::TestServer(TestSetup setup) : setup_(std::move(setup)) {
  spdlog::set_level(spdlog::level::off);
  auto server = Server::Listen(setup_.options);
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  channel_ = NewChannel();
  stub_ = v1::Inference::NewStub(channel_);
  if (setup_.serve) Serve();
}

void TestServer::Serve() {
  auto engine = Engine::Create(std::make_unique<ChattyCheckpoint>(setup_.chat_template),
                               std::make_unique<HookedKernels>(setup_.hook), setup_.options.engine);
  ASSERT_TRUE(engine.ok()) << engine.status();
  engine_ = engine->get();
  server_->Serve({.name = "tiny", .device = "cpu", .engine = *std::move(engine)});
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // windows stay at 64 KiB
  return grpc::CreateCustomChannel(server_->grpc_address(), grpc::InsecureChannelCredentials(),
                                   arguments);
}

Answer TestServer::Generate(const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  return ReadAll(*reader);
}

std::pair<grpc::Status, std::string> TestServer::RawCall(const std::string& method,
                                                         const std::string& bytes) {
  grpc::GenericStub stub(channel_);
  grpc::ClientContext context;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, {}, &request, &response,
                 [&](grpc::Status status) { done.set_value(std::move(status)); });
  grpc::Status status = done.get_future().get();
  return {status, ToString(response)};
}

std::string TestServer::Health(const std::string& service) {
  std::string request;
  if (!service.empty()) {
    request = {'\x0A', static_cast<char>(service.size())};
    request += service;
  }
  const auto [status, response] = RawCall("/grpc.health.v1.Health/Check", request);
  EXPECT_TRUE(status.ok()) << status.error_message();
  if (response == "\x08\x01") return "SERVING";
  return response == "\x08\x02" ? "NOT_SERVING" : "UNKNOWN";
}

std::string TestServer::Metrics() const {
  const std::string& address = server_->metrics_address();
  const size_t colon = address.rfind(':');
  sockaddr_in peer = {
      .sin_family = AF_INET,
      .sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))))};
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &peer.sin_addr);
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(socket_fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(socket_fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string response;
  char buffer[4096];
  for (ssize_t n; (n = read(socket_fd, buffer, sizeof(buffer))) > 0;) response.append(buffer, n);
  close(socket_fd);
  EXPECT_TRUE(response.starts_with("HTTP/1.1 200")) << response.substr(0, 200);
  return response.substr(response.find("\r\n\r\n") + 4);
}

std::string TestServer::Metric(const std::string& series) const {
  const std::string metrics = Metrics();
  const std::string line = "\neverlong_" + series + " ";
  const size_t at = metrics.find(line);
  if (at == std::string::npos) return "";
  const size_t begin = at + line.size();
  return metrics.substr(begin, metrics.find('\n', begin) - begin);
}

v1::GenerateRequest TokenRequest(int64_t prompt, int64_t output) {
  v1::GenerateRequest request;
  for (const int32_t token : RandomPrompt(1, prompt)) {
    request.mutable_token_ids()->add_ids(token);
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_output_tokens(output);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

Answer ReadAll(grpc::ClientReader<v1::GenerateEvent>& reader) {
  Answer answer;
  for (v1::GenerateEvent event; reader.Read(&event);) answer.events.push_back(event);
  answer.status = reader.Finish();
  return answer;
}

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 6000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace everlong
