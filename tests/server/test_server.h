// A server in this process, over real sockets, with the tiny model of the engine's tests.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "everlong/v1/inference.grpc.pb.h"
#include "server/server.h"
#include "tests/engine/tiny_model.h"

namespace everlong {

// What came back from one Generate call.
struct Answer {
  std::vector<v1::GenerateEvent> events;
  grpc::Status status;

  std::string text(int32_t sample = 0) const;
  std::vector<int32_t> tokens(int32_t sample = 0) const;
};

// Small, on free ports.
ServerOptions TestServerOptions();

struct TestSetup {
  ServerOptions options = TestServerOptions();
  std::string chat_template;
  std::function<void()> hook = [] {};  // before each attention
  bool serve = true;                   // false: stays loading until Serve
};

class TestServer {
 public:
  explicit TestServer(TestSetup setup = {});

  void Serve();
  Server& server() { return *server_; }
  const Engine& engine() const { return *engine_; }

  // A channel of its own, with its own connection.
  std::shared_ptr<grpc::Channel> NewChannel() const;
  v1::Inference::Stub& stub() { return *stub_; }

  Answer Generate(const v1::GenerateRequest& request);

  // A call with one message and at most one answer, of any service.
  std::pair<grpc::Status, std::string> RawCall(const std::string& method, const std::string& bytes);
  // "SERVING", "NOT_SERVING" or "UNKNOWN", as grpc.health.v1 says.
  std::string Health(const std::string& service);

  // The body of GET /metrics.
  std::string Metrics() const;
  // The value of one series of it without the prefix, e.g. "num_requests_running"; "" without one.
  std::string Metric(const std::string& series) const;

 private:
  TestSetup setup_;
  std::unique_ptr<Server> server_;
  const Engine* engine_ = nullptr;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// A greedy request for exactly `output` tokens after a prompt of `prompt` ones.
v1::GenerateRequest TokenRequest(int64_t prompt, int64_t output);

Answer ReadAll(grpc::ClientReader<v1::GenerateEvent>& reader);

// False where `condition` does not come true within a minute.
bool Eventually(const std::function<bool()>& condition);

}  // namespace everlong
