#include "client/failure.h"

#include <fmt/format.h>
#include <google/protobuf/util/time_util.h>

#include <map>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace everlong {
namespace {

std::string DescribeViolations(const google::rpc::BadRequest& bad_request,
                               const std::string& message) {
  std::string text;
  for (const auto& violation : bad_request.field_violations()) {
    if (message.find(violation.description()) == std::string::npos) {
      text += fmt::format(" [{}: {}]", violation.field(), violation.description());
    } else if (message.find(violation.field()) == std::string::npos) {
      text += fmt::format(" [{}]", violation.field());
    }
  }
  return text;
}

std::string DescribeReason(const google::rpc::ErrorInfo& info) {
  std::string text = " [" + info.reason();
  // Sorted: the message's own map has no stable order.
  const std::map<std::string, std::string> metadata(info.metadata().begin(), info.metadata().end());
  for (const auto& [key, value] : metadata) text += fmt::format(" {}={}", key, value);
  return text + "]";
}

// Empty where the detail only repeats the message or is of another type.
std::string DescribeDetail(const google::protobuf::Any& detail, const std::string& message) {
  if (google::rpc::BadRequest bad_request; detail.UnpackTo(&bad_request)) {
    return DescribeViolations(bad_request, message);
  }
  if (google::rpc::RetryInfo retry; detail.UnpackTo(&retry)) {
    using google::protobuf::util::TimeUtil;
    return fmt::format(" [try again in {} s]",
                       TimeUtil::DurationToMilliseconds(retry.retry_delay()) / 1e3);
  }
  if (google::rpc::ErrorInfo info; detail.UnpackTo(&info)) return DescribeReason(info);
  return "";
}

}  // namespace

absl::Status CallFailure(int code, const std::string& message, const std::string& details) {
  std::string line = message;
  if (google::rpc::Status status; status.ParseFromString(details)) {
    for (const auto& detail : status.details()) line += DescribeDetail(detail, message);
  }
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7F; };
  std::replace_if(line.begin(), line.end(), is_control, ' ');
  const bool known = code >= 1 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return {known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown, line};
}

}  // namespace everlong
