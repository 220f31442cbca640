// The service of the public proto.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>

#include "everlong/v1/inference.grpc.pb.h"
#include "server/call_counts.h"
#include "server/served_model.h"
#include "server/worker_pool.h"

namespace everlong {

// Methods take and give bytes, for the sake of ParseMessage's errors.
using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Tokenize<v1::Inference::WithRawCallbackMethod_Detokenize<
        v1::Inference::WithRawCallbackMethod_ListModels<
            v1::Inference::WithRawCallbackMethod_GetModel<v1::Inference::Service>>>>>;

// UNAVAILABLE to all until Serve.
class InferenceService final : public RawInference {
 public:
  InferenceService();

  // Any thread, once; `served` outlives the service.
  void Serve(const ServedModel* served) { served_ = served; }

  const CallCounts& counts() const { return counts_; }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  // Runs `work` here where `request` is short, else on readers_; false where that is full.
  bool RunSized(const grpc::ByteBuffer& request, std::function<void()> work);

  template <class Request, class Response>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                   absl::StatusOr<Response> (*answer)(const Request&,
                                                                      const ServedModel&));

  std::atomic<const ServedModel*> served_{nullptr};
  CallCounts counts_;
  WorkerPool readers_;  // of long requests
  WorkerPool writers_;  // of what the engine says
};

}  // namespace everlong
