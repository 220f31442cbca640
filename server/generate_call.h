// One Generate call: between gRPC, which calls from its threads, and the engine, which calls from
// its own.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/time/time.h"
#include "engine/request.h"
#include "server/call_counts.h"
#include "server/pending_events.h"
#include "server/served_model.h"
#include "server/worker_pool.h"

namespace everlong {

// At most one write is in flight; what the engine says meanwhile waits in PendingEvents, and past a
// bound the engine pauses this request alone. The engine's thread never writes itself. After a
// successful submission the call ends with the engine's terminal event and not before, so the
// engine never outlives its sink.
//
// Owns itself until gRPC is done with it; the engine shares it until the terminal event.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public EventSink,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Both outlive the call. `writers` takes any amount of work.
  static std::shared_ptr<GenerateCall> Create(CallCounts* counts, WorkerPool* writers);

  // One of these two, once, from any thread. `served` outlives the call.
  void Begin(const grpc::ByteBuffer& message, absl::Time deadline, const ServedModel& served);
  void Refuse(const absl::Status& status);

  void OnEvent(Event event) override;
  bool Backlogged() const override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateCall(CallCounts* counts, WorkerPool* writers) : counts_(counts), writers_(writers) {
    counts_->OnBegin();
  }

  absl::Status Submit(const grpc::ByteBuffer& message, absl::Time deadline,
                      const ServedModel& served);
  void Write();

  CallCounts* const counts_;
  WorkerPool* const writers_;
  std::shared_ptr<GenerateCall> self_;
  std::atomic<size_t> backlog_bytes_{0};
  grpc::ByteBuffer write_;  // in flight; belongs to who holds writing_

  std::mutex mutex_;  // guards everything below
  PendingEvents pending_;
  Engine* engine_ = nullptr;
  RequestId id_ = 0;      // 0 until the engine has accepted
  bool writing_ = false;  // a write or the end is on its way; held by one thread or by gRPC
  bool broken_ = false;   // a write failed: nothing can be sent any more
  bool cancelled_ = false;
  std::optional<FinishedEvent> end_;
};

}  // namespace everlong
