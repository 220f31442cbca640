#include "server/inference_service.h"

#include <limits>
#include <utility>

#include "engine/status.h"
#include "fmt/format.h"
#include "server/generate_call.h"
#include "server/request_from_proto.h"
#include "server/rpc_status.h"
#include "server/wire.h"

namespace everlong {
namespace {

// The tokenizer reads about four megabytes a second: a million tokens of text take a second, this
// much a few milliseconds.
constexpr size_t kShortBytes = 16 << 10;
constexpr int kReaderThreads = 2;
constexpr size_t kMaxReadersWaiting = 256;

absl::Status Loading() {
  return absl::UnavailableError("the model is being loaded");
}

absl::Status TooManyLong() {
  return absl::ResourceExhaustedError(fmt::format(
      "{} long requests wait to be read, the limit is {}", kMaxReadersWaiting, kMaxReadersWaiting));
}

absl::Time Deadline(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture()
                                                                  : absl::FromChrono(deadline);
}

v1::Model Describe(const ServedModel& served) {
  const Engine& engine = *served.engine;
  const ModelConfig& config = engine.config();
  v1::Model model;
  model.set_name(served.name);
  model.set_architecture(config.architecture);
  model.set_vocab_size(config.vocab_size);
  model.set_hidden_size(config.hidden_size);
  model.set_num_layers(config.num_layers);
  model.set_q_heads(config.q_heads);
  model.set_kv_heads(config.kv_heads);
  model.set_head_dim(config.head_dim);
  model.set_trained_length(config.trained_length);
  model.set_served_length(engine.options().max_context);
  model.set_kv_bytes_per_token(engine.kv_bytes_per_token());
  model.mutable_eos_token_ids()->Add(config.eos_ids.begin(), config.eos_ids.end());
  model.set_has_chat_template(engine.chat_template() != nullptr);
  model.set_device(served.device);
  for (const std::string_view preset : engine.attention_presets()) {
    model.add_attention_presets(std::string(preset));
  }
  return model;
}

absl::StatusOr<v1::ListModelsResponse> ListModelsAnswer(const v1::ListModelsRequest&,
                                                        const ServedModel& served) {
  v1::ListModelsResponse response;
  *response.add_models() = Describe(served);
  return response;
}

absl::StatusOr<v1::Model> GetModelAnswer(const v1::GetModelRequest& request,
                                         const ServedModel& served) {
  RETURN_IF_ERROR(CheckModel(request.model(), served));
  return Describe(served);
}

absl::StatusOr<v1::TokenizeResponse> TokenizeAnswer(const v1::TokenizeRequest& request,
                                                    const ServedModel& served) {
  RETURN_IF_ERROR(CheckModel(request.model(), served));
  if (request.input_case() == v1::TokenizeRequest::INPUT_NOT_SET) {
    return absl::InvalidArgumentError("input: one of text and chat is required");
  }
  const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                   request.has_chat() ? ChatTokens(request.chat(), served)
                                      : TextTokens(request.text(), add_special, served));
  v1::TokenizeResponse response;
  response.mutable_token_ids()->Add(tokens.begin(), tokens.end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> DetokenizeAnswer(const v1::DetokenizeRequest& request,
                                                        const ServedModel& served) {
  RETURN_IF_ERROR(CheckModel(request.model(), served));
  const Tokenizer& tokenizer = served.engine->tokenizer();
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const int32_t token = request.token_ids(i);
    if (token >= 0 && token < tokenizer.vocab_size()) continue;
    return absl::InvalidArgumentError(
        fmt::format("token_ids[{}]: token {} is outside the vocabulary [0, {})", i, token,
                    tokenizer.vocab_size()));
  }
  v1::DetokenizeResponse response;
  response.set_text(
      tokenizer.Decode({request.token_ids().data(), static_cast<size_t>(request.token_ids_size())},
                       request.skip_special_tokens()));
  return response;
}

}  // namespace

InferenceService::InferenceService()
    : readers_(kReaderThreads, kMaxReadersWaiting),
      writers_(1, std::numeric_limits<size_t>::max()) {}

bool InferenceService::RunSized(const grpc::ByteBuffer& request, std::function<void()> work) {
  if (request.Length() > kShortBytes) return readers_.Post(std::move(work));
  work();
  return true;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto call = GenerateCall::Create(&counts_, &writers_);
  const ServedModel* served = served_;
  const absl::Time deadline = Deadline(*context);
  if (served == nullptr) {
    call->Refuse(Loading());
  } else if (!RunSized(*request, [=] { call->Begin(*request, deadline, *served); })) {
    call->Refuse(TooManyLong());
  }
  return call.get();
}

template <class Request, class Response>
grpc::ServerUnaryReactor* InferenceService::Answer(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response,
    absl::StatusOr<Response> (*answer)(const Request&, const ServedModel&)) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const ServedModel* served = served_;
  const auto respond = [=]() -> absl::Status {
    Request message;
    RETURN_IF_ERROR(ParseMessage(*request, message));
    ASSIGN_OR_RETURN(const Response result, answer(message, *served));
    *response = SerializeMessage(result);
    return absl::OkStatus();
  };
  if (served == nullptr) {
    reactor->Finish(ToRpcStatus(Loading()));
  } else if (!RunSized(*request, [=] { reactor->Finish(ToRpcStatus(respond())); })) {
    reactor->Finish(ToRpcStatus(TooManyLong()));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return Answer(context, request, response, TokenizeAnswer);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Answer(context, request, response, DetokenizeAnswer);
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Answer(context, request, response, ListModelsAnswer);
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return Answer(context, request, response, GetModelAnswer);
}

}  // namespace everlong
