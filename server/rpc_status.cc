#include "server/rpc_status.h"

#include <algorithm>
#include <cctype>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace everlong {
namespace {

constexpr char kDomain[] = "everlong";
constexpr int kRetrySeconds = 1;

// What a status of each code means in this server.
const char* Reason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_FIELD";
    case absl::StatusCode::kNotFound:
      return "MODEL_NOT_FOUND";
    case absl::StatusCode::kFailedPrecondition:
      return "NO_CHAT_TEMPLATE";
    case absl::StatusCode::kResourceExhausted:
      return "QUEUE_FULL";
    case absl::StatusCode::kUnavailable:
      return "NOT_SERVING";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    default:
      return "INTERNAL";
  }
}

// The field's path that a message begins with, e.g. "chat.messages[1].role"; "" where it does not.
std::string LeadingField(const std::string& message) {
  const size_t colon = message.find(": ");
  if (colon == std::string::npos || colon == 0) return "";
  const auto in_path = [](unsigned char c) {
    return std::islower(c) || std::isdigit(c) || c == '_' || c == '.' || c == '[' || c == ']';
  };
  const auto end = message.begin() + static_cast<std::ptrdiff_t>(colon);
  return std::all_of(message.begin(), end, in_path) ? message.substr(0, colon) : "";
}

bool MayPass(absl::StatusCode code) {
  return code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnavailable;
}

google::rpc::Status WithDetails(absl::StatusCode code, const std::string& message) {
  google::rpc::Status rich;
  rich.set_code(static_cast<int>(code));
  rich.set_message(message);
  const std::string field = LeadingField(message);
  if (code == absl::StatusCode::kInvalidArgument && !field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(field);
    violation->set_description(message.substr(field.size() + 2));
    rich.add_details()->PackFrom(bad_request);
  }
  google::rpc::ErrorInfo info;
  info.set_reason(Reason(code));
  info.set_domain(kDomain);
  rich.add_details()->PackFrom(info);
  if (MayPass(code)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(kRetrySeconds);
    rich.add_details()->PackFrom(retry);
  }
  return rich;
}

}  // namespace

grpc::Status ToRpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message());
  return {static_cast<grpc::StatusCode>(status.code()), message,
          WithDetails(status.code(), message).SerializeAsString()};
}

}  // namespace everlong
