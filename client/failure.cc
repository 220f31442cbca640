#include "client/failure.h"

#include <fmt/format.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace everlong {
namespace {

// What one detail adds to `message`; empty where it only repeats it or is of an unknown type.
std::string DescribeDetail(const google::protobuf::Any& detail, const std::string& message) {
  std::string line;
  if (google::rpc::BadRequest bad_request; detail.UnpackTo(&bad_request)) {
    for (const auto& violation : bad_request.field_violations()) {
      if (message.find(violation.description()) == std::string::npos) {
        line += fmt::format(" [{}: {}]", violation.field(), violation.description());
      } else if (message.find(violation.field()) == std::string::npos) {
        line += fmt::format(" [{}]", violation.field());
      }
    }
  } else if (google::rpc::RetryInfo retry; detail.UnpackTo(&retry)) {
    const double seconds =
        google::protobuf::util::TimeUtil::DurationToMilliseconds(retry.retry_delay()) / 1e3;
    line = fmt::format(" [try again in {} s]", seconds);
  } else if (google::rpc::ErrorInfo info; detail.UnpackTo(&info)) {
    line = fmt::format(" [{}", info.reason());
    // A map's own order differs from run to run.
    std::vector<std::pair<std::string, std::string>> metadata(info.metadata().begin(),
                                                              info.metadata().end());
    std::sort(metadata.begin(), metadata.end());
    for (const auto& [key, value] : metadata) line += fmt::format(" {}={}", key, value);
    line += "]";
  }
  return line;
}

}  // namespace

std::string_view CodeName(grpc::StatusCode code) {
  static constexpr std::array<std::string_view, 17> kNames = {"OK",
                                                              "CANCELLED",
                                                              "UNKNOWN",
                                                              "INVALID_ARGUMENT",
                                                              "DEADLINE_EXCEEDED",
                                                              "NOT_FOUND",
                                                              "ALREADY_EXISTS",
                                                              "PERMISSION_DENIED",
                                                              "RESOURCE_EXHAUSTED",
                                                              "FAILED_PRECONDITION",
                                                              "ABORTED",
                                                              "OUT_OF_RANGE",
                                                              "UNIMPLEMENTED",
                                                              "INTERNAL",
                                                              "UNAVAILABLE",
                                                              "DATA_LOSS",
                                                              "UNAUTHENTICATED"};
  return code >= 0 && static_cast<size_t>(code) < kNames.size() ? kNames[code] : "UNKNOWN";
}

std::string DescribeFailure(const grpc::Status& status) {
  std::string line = fmt::format("{}: {}", CodeName(status.error_code()), status.error_message());
  google::rpc::Status rich;
  if (rich.ParseFromString(status.error_details())) {
    for (const auto& detail : rich.details()) {
      line += DescribeDetail(detail, status.error_message());
    }
  }
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return line;
}

}  // namespace everlong
