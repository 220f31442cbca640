#include "server/rpc_status.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace everlong {
namespace {

// The details of a status, as a client unpacks them.
struct Details {
  explicit Details(const grpc::Status& status) {
    google::rpc::Status rich;
    EXPECT_TRUE(rich.ParseFromString(status.error_details()));
    EXPECT_EQ(rich.code(), static_cast<int>(status.error_code()));
    EXPECT_EQ(rich.message(), status.error_message());
    for (const auto& detail : rich.details()) {
      has_bad_request |= detail.UnpackTo(&bad_request);
      has_retry |= detail.UnpackTo(&retry);
      has_info |= detail.UnpackTo(&info);
    }
  }

  google::rpc::BadRequest bad_request;
  google::rpc::RetryInfo retry;
  google::rpc::ErrorInfo info;
  bool has_bad_request = false;
  bool has_retry = false;
  bool has_info = false;
};

TEST(RpcStatusTest, EveryCodeKeepsItsNumberAndMessage) {
  EXPECT_TRUE(ToRpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToRpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "because"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "because");
    const Details details(status);
    ASSERT_TRUE(details.has_info);
    EXPECT_EQ(details.info.domain(), "everlong");
    EXPECT_FALSE(details.info.reason().empty());
    EXPECT_FALSE(details.has_bad_request);
  }
}

TEST(RpcStatusTest, FieldViolationsAreReadFromTheMessage) {
  const Details details(
      ToRpcStatus(absl::InvalidArgumentError("chat.messages[1].role: is empty: x")));
  ASSERT_TRUE(details.has_bad_request);
  ASSERT_EQ(details.bad_request.field_violations_size(), 1);
  EXPECT_EQ(details.bad_request.field_violations(0).field(), "chat.messages[1].role");
  EXPECT_EQ(details.bad_request.field_violations(0).description(), "is empty: x");
  for (const char* message : {"The message: x", "no colon", ": x", "two words: x"}) {
    EXPECT_FALSE(Details(ToRpcStatus(absl::InvalidArgumentError(message))).has_bad_request)
        << message;
  }
  EXPECT_FALSE(Details(ToRpcStatus(absl::NotFoundError("model: x"))).has_bad_request);
}

TEST(RpcStatusTest, RetryInfoComesWhereTryingAgainMayHelp) {
  EXPECT_TRUE(Details(ToRpcStatus(absl::ResourceExhaustedError("full"))).has_retry);
  const Details unavailable(ToRpcStatus(absl::UnavailableError("loading")));
  ASSERT_TRUE(unavailable.has_retry);
  EXPECT_GT(unavailable.retry.retry_delay().seconds(), 0);
  EXPECT_FALSE(Details(ToRpcStatus(absl::InvalidArgumentError("x"))).has_retry);
}

}  // namespace
}  // namespace everlong
