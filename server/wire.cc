#include "server/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <map>

#include "engine/text.h"
#include "fmt/format.h"

namespace everlong {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::MessageLite;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

std::string InMessage(const Descriptor& type, std::string_view bytes, const std::string& path);

// What is wrong inside a length-delimited field.
std::string InField(const FieldDescriptor& field, std::string_view bytes, const std::string& name) {
  if (field.type() == FieldDescriptor::TYPE_MESSAGE) {
    return InMessage(*field.message_type(), bytes, name + ".");
  }
  if (field.type() == FieldDescriptor::TYPE_STRING) {
    const size_t bad = FindInvalidUtf8(bytes);
    if (bad != std::string_view::npos) return fmt::format("{}: not UTF-8 at byte {}", name, bad);
  }
  return "";
}

std::string InMessage(const Descriptor& type, std::string_view bytes, const std::string& path) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()),
                         static_cast<int>(bytes.size()));
  std::map<int, int> seen;  // entries of each field so far
  const auto damaged = [&] {
    const std::string where =
        path.empty() ? "the message is" : path.substr(0, path.size() - 1) + ":";
    return fmt::format("{} damaged at byte {}", where, input.CurrentPosition());
  };
  while (const uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) return damaged();
      continue;
    }
    uint32_t length = 0;
    if (!input.ReadVarint32(&length)) return damaged();
    const auto begin = static_cast<size_t>(input.CurrentPosition());
    if (length > bytes.size() - begin) return damaged();
    input.Skip(static_cast<int>(length));
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field == nullptr) continue;
    const int index = seen[field->number()]++;
    const std::string name = field->is_repeated()
                                 ? fmt::format("{}{}[{}]", path, field->name(), index)
                                 : path + field->name();
    std::string defect = InField(*field, bytes.substr(begin, length), name);
    if (!defect.empty()) return defect;
  }
  return input.ConsumedEntireMessage() ? "" : damaged();
}

std::string ToString(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string all;
  if (!bytes.Dump(&slices).ok()) return all;
  all.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) {
    all.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return all;
}

}  // namespace

std::string FindDefect(const Descriptor& type, std::string_view bytes) {
  return InMessage(type, bytes, "");
}

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, MessageLite& message) {
  const std::string flat = ToString(bytes);
  if (message.ParseFromString(flat)) return absl::OkStatus();
  const auto& typed = static_cast<const google::protobuf::Message&>(message);
  std::string defect = FindDefect(*typed.GetDescriptor(), flat);
  if (defect.empty()) defect = fmt::format("the message is not a {}", message.GetTypeName());
  return absl::InvalidArgumentError(defect);
}

grpc::ByteBuffer SerializeMessage(const MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  grpc::Slice slice(size);
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace everlong
