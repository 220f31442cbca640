// Requests to tokens. One thread owns model, cache, sessions and schedule; other threads put
// commands into a mutex-guarded inbox. Without Start, a test calls Step itself and everything is
// deterministic.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/attention_policy.h"
#include "engine/chat_template.h"
#include "engine/checkpoint.h"
#include "engine/request.h"
#include "engine/stats.h"
#include "engine/tokenizer.h"
#include "kernels/kernels.h"

namespace everlong {

struct EngineOptions {
  int64_t max_context = 0;       // tokens of one sequence; 0: the trained length
  int32_t max_batch_tokens = 0;  // of one step, prefill and decode together; 0: 512, on a device
                                 // with memory of its own 8192
  int32_t max_running = 32;      // sequences (samples count each)
  int32_t max_waiting = 1024;    // requests; more are refused with RESOURCE_EXHAUSTED
  // At least one sequence of max_context. 0: room for four, at most a quarter of the machine's
  // memory; of a device's own memory nine tenths of what weights and activations leave.
  int64_t kv_device_bytes = 0;
  std::optional<DType> kv_type;  // nothing: what suits the device
  AttentionConfig attention;
  int32_t index_bits = 4;      // of a key's channel in the copy that the scan selector reads
  int32_t fidelity_every = 0;  // of requests that leave it out
  std::function<absl::Time()> clock = absl::Now;
};

class Engine {
 public:
  // Loads the weights into `kernels` and sizes every buffer; nothing is allocated on the device
  // later. INVALID_ARGUMENT where an option is out of range, RESOURCE_EXHAUSTED where memory does
  // not suffice, with the numbers in the message; else what the checkpoint's parts report.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<Checkpoint> checkpoint,
                                                        std::unique_ptr<Kernels> kernels,
                                                        EngineOptions options);
  virtual ~Engine() = default;

  // Any thread. Immutable after Create.
  virtual const ModelConfig& config() const = 0;
  virtual const EngineOptions& options() const = 0;  // defaults resolved
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const ChatTemplate* chat_template() const = 0;  // null: the checkpoint has none
  virtual int64_t kv_bytes_per_token() const = 0;
  // What a request may name. Empty: attention is dense only.
  virtual std::vector<std::string_view> attention_presets() const = 0;
  // What PositionWarning says of the server's own settings.
  virtual std::string attention_warning() const = 0;

  // Any thread. INVALID_ARGUMENT as ValidateRequest says; RESOURCE_EXHAUSTED when max_waiting
  // requests wait; DEADLINE_EXCEEDED when the prompt cannot be read in time at the best rate seen;
  // UNAVAILABLE while draining. After OK, the sink gets events and exactly one
  // FinishedEvent, last.
  virtual absl::StatusOr<RequestId> Submit(Request request, std::shared_ptr<EventSink> sink) = 0;

  // Any thread; idempotent, unknown ids are ignored. The FinishedEvent (CANCELLED) still comes.
  virtual void Cancel(RequestId id) = 0;

  // One step: take the inbox, schedule, run the model, sample, deliver. False: nothing to do.
  // Engine thread only (the caller's, when Start was not called).
  virtual bool Step() = 0;

  // Runs Step on a thread of its own until Stop.
  virtual void Start() = 0;
  // Refuses new requests from now on; Idle tells when the running ones have ended.
  virtual void Drain() = 0;
  virtual bool Idle() const = 0;
  // Ends running requests with UNAVAILABLE and joins the thread.
  virtual void Stop() = 0;

  // Any thread. False after a device fault: every request got INTERNAL and the process should exit.
  virtual bool Healthy() const = 0;
  virtual EngineStats Stats() const = 0;
};

}  // namespace everlong
