#include "tests/client/fake_server.h"

#include <google/protobuf/text_format.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <thread>
#include <utility>

#include "engine/text.h"
#include "everlong/v1/inference.grpc.pb.h"

namespace everlong {
namespace {

grpc::Status ToGrpc(const Ending& ending) {
  return {static_cast<grpc::StatusCode>(ending.code), ending.message,
          ending.details.SerializeAsString()};
}

class StreamWriter final : public EventWriter {
 public:
  StreamWriter(grpc::ServerContext& context, grpc::ServerWriter<v1::GenerateEvent>& writer)
      : context_(context), writer_(writer) {}

  bool Write(const v1::GenerateEvent& event) override { return writer_.Write(event); }

  bool WaitForCancel() override {
    using std::chrono::steady_clock;
    const auto deadline = steady_clock::now() + std::chrono::seconds(10);
    while (!context_.IsCancelled() && steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return context_.IsCancelled();
  }

 private:
  grpc::ServerContext& context_;
  grpc::ServerWriter<v1::GenerateEvent>& writer_;
};

}  // namespace

class FakeServer::Service final : public v1::Inference::Service {
 public:
  explicit Service(FakeServer& fake) : fake_(fake) {}

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    {
      std::lock_guard lock(fake_.mutex_);
      fake_.generate_requests_.push_back(*request);
    }
    StreamWriter events(*context, *writer);
    return fake_.script ? ToGrpc(fake_.script(*request, events)) : grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    if (request->add_special_tokens() || !request->has_add_special_tokens()) {
      response->add_token_ids(1);
    }
    for (const char c : request->text()) response->add_token_ids(static_cast<uint8_t>(c));
    return ToGrpc(fake_.unary_ending);
  }

  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    {
      std::lock_guard lock(fake_.mutex_);
      ++fake_.num_detokenize_calls_;
    }
    std::string bytes;
    for (const int32_t id : request->token_ids()) {
      if (id != 1) {
        bytes += static_cast<char>(id);
      } else if (!request->skip_special_tokens()) {
        bytes += "<s>";
      }
    }
    response->set_text(ReplaceInvalidUtf8(bytes));
    return ToGrpc(fake_.unary_ending);
  }

  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    *response->add_models() = fake_.model;
    return ToGrpc(fake_.unary_ending);
  }

  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest* request,
                        v1::Model* response) override {
    if (!request->model().empty() && request->model() != fake_.model.name()) {
      return {grpc::StatusCode::NOT_FOUND, "model: '" + request->model() + "' is not served"};
    }
    *response = fake_.model;
    return ToGrpc(fake_.unary_ending);
  }

 private:
  FakeServer& fake_;
};

struct FakeServer::Running {
  explicit Running(FakeServer& fake) : service(fake) {}
  Service service;
  std::unique_ptr<grpc::Server> server;
};

FakeServer::FakeServer(int max_receive_bytes) : running_(std::make_unique<Running>(*this)) {
  google::protobuf::TextFormat::ParseFromString(
      "name: 'bytes' architecture: 'LlamaForCausalLM' vocab_size: 256 hidden_size: 64 "
      "num_layers: 2 q_heads: 4 kv_heads: 2 head_dim: 16 trained_length: 4096 served_length: 2048 "
      "kv_bytes_per_token: 512 eos_token_ids: 2 has_chat_template: true device: 'cpu'",
      &model);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(max_receive_bytes);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&running_->service);
  running_->server = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() {
  running_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
}

std::vector<v1::GenerateRequest> FakeServer::generate_requests() const {
  std::lock_guard lock(mutex_);
  return generate_requests_;
}

int64_t FakeServer::num_detokenize_calls() const {
  std::lock_guard lock(mutex_);
  return num_detokenize_calls_;
}

v1::GenerateEvent Event(const std::string& text) {
  v1::GenerateEvent event;
  const bool parsed = google::protobuf::TextFormat::ParseFromString(text, &event);
  if (!parsed) throw std::invalid_argument(text);
  return event;
}

Script Answer(std::vector<std::string> events) {
  return [events = std::move(events)](const v1::GenerateRequest&, EventWriter& writer) {
    for (const std::string& event : events) writer.Write(Event(event));
    return Ending{};
  };
}

}  // namespace everlong
