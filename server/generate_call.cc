#include "server/generate_call.h"

#include <utility>

#include "engine/status.h"
#include "server/request_from_proto.h"
#include "server/rpc_status.h"
#include "server/wire.h"
#include "spdlog/spdlog.h"

namespace everlong {
namespace {

// Thousands of tokens of text: a reader so far behind is not just slowed by the network.
constexpr size_t kMaxBacklogBytes = 256 << 10;

double Milliseconds(absl::Duration d) {
  return absl::ToDoubleMilliseconds(d);
}

void Log(RequestId id, const FinishedEvent& end) {
  spdlog::info(
      "request {} {}: {} prompt + {} output tokens; queue {:.1f} ms, prefill {:.1f} ms, first "
      "token {:.1f} ms, decode {:.1f} ms{}{}",
      id, absl::StatusCodeToString(end.status.code()), end.usage.prompt_tokens,
      end.usage.output_tokens, Milliseconds(end.timings.queue), Milliseconds(end.timings.prefill),
      Milliseconds(end.timings.first_token), Milliseconds(end.timings.decode),
      end.status.ok() ? "" : "; ", std::string(end.status.message()));
}

}  // namespace

std::shared_ptr<GenerateCall> GenerateCall::Create(CallCounts* counts, WorkerPool* writers) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(counts, writers));
  call->self_ = call;
  return call;
}

void GenerateCall::Begin(const grpc::ByteBuffer& message, absl::Time deadline,
                         const ServedModel& served) {
  const auto self = shared_from_this();
  const absl::Status status = Submit(message, deadline, served);
  if (!status.ok()) Refuse(status);
}

absl::Status GenerateCall::Submit(const grpc::ByteBuffer& message, absl::Time deadline,
                                  const ServedModel& served) {
  v1::GenerateRequest proto;
  RETURN_IF_ERROR(ParseMessage(message, proto));
  ASSIGN_OR_RETURN(Request request, ToRequest(proto, served));
  request.deadline = deadline;
  {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError("the call was cancelled");
    engine_ = served.engine.get();
    pending_.SetSubject({.model = served.name,
                         .prompt_tokens = static_cast<int64_t>(request.prompt.size()),
                         .num_samples = request.num_samples});
  }
  const auto id = served.engine->Submit(std::move(request), shared_from_this());
  return id.ok() ? absl::OkStatus() : NameProtoField(id.status(), proto);
}

void GenerateCall::Refuse(const absl::Status& status) {
  counts_->OnRefusal(status.code());
  spdlog::debug("request refused, {}", status.ToString());
  {
    const std::lock_guard lock(mutex_);
    end_ = FinishedEvent{.status = status};
    writing_ = true;
  }
  Write();
}

void GenerateCall::OnEvent(Event event) {
  const std::lock_guard lock(mutex_);
  if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
    id_ = accepted->id;
    if (cancelled_) engine_->Cancel(id_);
  }
  const auto* end = std::get_if<FinishedEvent>(&event);
  if (end != nullptr) end_ = *end;
  if (!broken_ && (end == nullptr || end->status.ok())) pending_.Add(std::move(event));
  backlog_bytes_.store(pending_.bytes(), std::memory_order_relaxed);
  if (std::exchange(writing_, true)) return;
  // A write takes some 15 microseconds of the thread that starts it, ten times what this does.
  writers_->Post([self = shared_from_this()] { self->Write(); });
}

bool GenerateCall::Backlogged() const {
  return backlog_bytes_.load(std::memory_order_relaxed) > kMaxBacklogBytes;
}

// Starts the next write or the end; called by who holds writing_, which passes to gRPC then. gRPC
// is called without the lock, and the end may destroy this object.
void GenerateCall::Write() {
  std::unique_lock lock(mutex_);
  std::optional<v1::GenerateEvent> next;
  if (!broken_) next = pending_.Take(absl::Now());
  backlog_bytes_.store(pending_.bytes(), std::memory_order_relaxed);
  if (next) {
    lock.unlock();
    write_ = SerializeMessage(*next);
    StartWrite(&write_);
  } else if (end_) {
    const absl::Status status = end_->status;
    lock.unlock();
    Finish(ToRpcStatus(status));
  } else {
    writing_ = false;
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  if (!ok) {
    const std::lock_guard lock(mutex_);
    broken_ = true;
    pending_ = PendingEvents();
  }
  Write();
}

void GenerateCall::OnCancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (id_ != 0) engine_->Cancel(id_);
}

void GenerateCall::OnDone() {
  {
    const std::lock_guard lock(mutex_);
    if (id_ != 0) Log(id_, *end_);
  }
  counts_->OnEnd();
  self_.reset();
}

}  // namespace everlong
