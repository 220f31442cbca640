// A server on a free port of 127.0.0.1 whose answers a test scripts. Without gRPC in its interface:
// that is slow to compile.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "everlong/v1/inference.pb.h"
#include "google/rpc/status.pb.h"

namespace everlong {

// How a call ends.
struct Ending {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;
  google::rpc::Status details;
};

class EventWriter {
 public:
  virtual ~EventWriter() = default;
  // False once the client is gone.
  virtual bool Write(const v1::GenerateEvent& event) = 0;
  // Waits until the client has cancelled or is gone; false after ten seconds.
  virtual bool WaitForCancel() = 0;
};

using Script = std::function<Ending(const v1::GenerateRequest&, EventWriter&)>;

// Its vocabulary are the bytes: a text's ids are its bytes.
class FakeServer {
 public:
  explicit FakeServer(int max_receive_bytes = 4 << 20);
  ~FakeServer();

  const std::string& address() const { return address_; }

  // To be set before calls are made; by default a call ends at once.
  Script script;
  Ending unary_ending;
  v1::Model model;

  std::vector<v1::GenerateRequest> generate_requests() const;
  int64_t num_detokenize_calls() const;

 private:
  class Service;
  struct Running;
  std::string address_;
  mutable std::mutex mutex_;
  std::vector<v1::GenerateRequest> generate_requests_;
  int64_t num_detokenize_calls_ = 0;
  std::unique_ptr<Running> running_;
};

// From protobuf's text format, e.g. "output { text: 'a' token_ids: 97 }".
v1::GenerateEvent Event(const std::string& text);

// Writes the events and ends the call well.
Script Answer(std::vector<std::string> events);

}  // namespace everlong
