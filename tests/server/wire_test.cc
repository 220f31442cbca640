#include "server/wire.h"

#include <gmock/gmock.h>
#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>

#include <random>

#include "everlong/v1/inference.pb.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

grpc::ByteBuffer Bytes(const std::string& text) {
  // Two slices, as a message over several frames has.
  const grpc::Slice slices[] = {grpc::Slice(text.substr(0, text.size() / 2)),
                                grpc::Slice(text.substr(text.size() / 2))};
  return {slices, 2};
}

absl::Status Parse(const std::string& bytes, v1::GenerateRequest* request) {
  return ParseMessage(Bytes(bytes), *request);
}

v1::GenerateRequest ChatOf(std::vector<std::string> contents) {
  v1::GenerateRequest request;
  for (const std::string& content : contents) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(content);
  }
  return request;
}

TEST(WireTest, MessagesComeBackWhole) {
  v1::GenerateRequest request = ChatOf({"one", "t\xC3\xA9n"});
  request.mutable_sampling()->set_seed(~uint64_t{0});
  v1::GenerateRequest again;
  ASSERT_TRUE(ParseMessage(SerializeMessage(request), again).ok());
  EXPECT_EQ(again.SerializeAsString(), request.SerializeAsString());
  ASSERT_TRUE(Parse(request.SerializeAsString(), &again).ok());
  EXPECT_EQ(again.SerializeAsString(), request.SerializeAsString());
  EXPECT_TRUE(Parse("", &again).ok());
}

TEST(WireTest, InvalidUtf8IsNamedWithFieldAndByte) {
  v1::GenerateRequest request;
  request.set_text("fine until \xFF here");
  absl::Status status = Parse(request.SerializeAsString(), &request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "text: not UTF-8 at byte 11");

  status = Parse(ChatOf({"a", "b", "\xC0\x80"}).SerializeAsString(), &request);
  EXPECT_EQ(status.message(), "chat.messages[2].content: not UTF-8 at byte 0");

  request.Clear();
  request.mutable_stopping()->add_stop("ok");
  request.mutable_stopping()->add_stop("x\xED\xA0\x80");
  status = Parse(request.SerializeAsString(), &request);
  EXPECT_EQ(status.message(), "stopping.stop[1]: not UTF-8 at byte 1");
}

TEST(WireTest, DamageIsNamedWithItsPlace) {
  v1::GenerateRequest request;
  absl::Status status = Parse(
      "\x12\x05"
      "abc",
      &request);  // text of 5 bytes, 3 are there
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the message is damaged at byte 2"));
  status = Parse(std::string("\x2A\x02\x0D\x00", 4),
                 &request);  // sampling.temperature without its four bytes
  EXPECT_THAT(std::string(status.message()), HasSubstr("sampling: damaged at byte"));
  EXPECT_FALSE(Parse(std::string(3, '\xFF'), &request).ok());
}

// Whatever is done to a message: refused with a reason, or parsed.
TEST(WireTest, RandomDamageAlwaysHasAReason) {
  v1::GenerateRequest request = ChatOf({"some text", "more \xE2\x82\xAC text"});
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_stopping()->add_stop("stop");
  const std::string good = request.SerializeAsString();
  std::mt19937 random(2);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint32_t i = 0; i < 1 + random() % 3; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const absl::Status status = Parse(bytes, &request);
    if (status.ok()) continue;
    ++refused;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(status.message().empty());
  }
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace everlong
