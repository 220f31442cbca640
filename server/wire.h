// Request messages from the bytes of the network. Parsing is not left to gRPC, which answers a
// message it cannot parse with UNIMPLEMENTED and no text.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace google::protobuf {
class Descriptor;
class MessageLite;
}  // namespace google::protobuf
namespace grpc {
class ByteBuffer;
}  // namespace grpc

namespace everlong {

// INVALID_ARGUMENT naming the field and the byte where `bytes` is not a message of its type: a
// string that is not UTF-8, or damage.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message);

// Why `bytes` is not a message of `type`, e.g. "chat.messages[1].content: not UTF-8 at byte 7";
// "" where nothing is wrong.
std::string FindDefect(const google::protobuf::Descriptor& type, std::string_view bytes);

}  // namespace everlong
