#include "engine/safetensors.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/json_object.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

absl::StatusOr<std::string_view> HeaderOf(std::string_view file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes are too few for a safetensors file", file.size()));
  }
  uint64_t length = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i) {
    length |= uint64_t{static_cast<unsigned char>(file[i])} << (8 * i);
  }
  const uint64_t limit = std::min<uint64_t>(file.size() - kLengthBytes, kMaxHeaderBytes);
  if (length > limit) {
    return absl::InvalidArgumentError(
        fmt::format("header length {} exceeds the limit of {} bytes (file size, 100 MB): not a "
                    "safetensors file or cut short",
                    length, limit));
  }
  return file.substr(kLengthBytes, length);
}

// Nothing where the element type is none that we compute with.
std::optional<int64_t> ElementBytes(std::string_view dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return std::nullopt;
}

// Nothing on overflow.
std::optional<int64_t> ByteCount(const std::vector<int64_t>& shape, int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::Status CheckSize(const SafetensorsTensor& tensor) {
  const auto element_bytes = ElementBytes(tensor.dtype);
  if (!element_bytes) return absl::OkStatus();
  const auto expected = ByteCount(tensor.shape, *element_bytes);
  if (!expected) return absl::InvalidArgumentError("the product of its shape is too large");
  if (*expected == static_cast<int64_t>(tensor.bytes.size())) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} of shape [{}] takes {} bytes, but it has {}",
                                                tensor.dtype, fmt::join(tensor.shape, ", "),
                                                *expected, tensor.bytes.size()));
}

absl::StatusOr<SafetensorsTensor> ParseTensor(const nlohmann::json& entry, std::string_view data) {
  if (!entry.is_object()) return absl::InvalidArgumentError("its entry is not an object");
  JsonObject fields(entry, "header");
  SafetensorsTensor tensor{.dtype = fields.String("dtype"),
                           .shape = fields.Ints("shape", {0, kMaxBytes})};
  const std::vector<int64_t> offsets = fields.Ints("data_offsets", {0, kMaxBytes});
  RETURN_IF_ERROR(fields.status());
  if (const auto* shape = fields.Find("shape"); shape == nullptr || !shape->is_array()) {
    return absl::InvalidArgumentError("it has no shape");
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return absl::InvalidArgumentError("data_offsets must be a begin and an end");
  }
  if (static_cast<uint64_t>(offsets[1]) > data.size()) {
    return absl::InvalidArgumentError(
        fmt::format("its data ends at byte {} of {}: the file is cut short or damaged", offsets[1],
                    data.size()));
  }
  tensor.bytes = data.substr(offsets[0], offsets[1] - offsets[0]);
  RETURN_IF_ERROR(CheckSize(tensor));
  return tensor;
}

// The format asks that tensors follow each other without gaps from the first byte to the last.
absl::Status CheckGapless(const SafetensorsTable& tensors, std::string_view data) {
  std::vector<std::pair<std::string_view, const std::string*>> by_place;
  for (const auto& [name, tensor] : tensors) by_place.emplace_back(tensor.bytes, &name);
  std::sort(by_place.begin(), by_place.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  const char* end = data.data();
  for (const auto& [bytes, name] : by_place) {
    if (bytes.data() != end) {
      return absl::InvalidArgumentError(fmt::format(
          "tensor {}: its data begins at byte {}, {} at {}", DescribeJson(*name),
          bytes.data() - data.data(),
          bytes.data() < end ? "inside the tensor that ends" : "past the last that ends",
          end - data.data()));
    }
    end = bytes.data() + bytes.size();
  }
  const int64_t rest = data.data() + data.size() - end;
  if (rest == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{} bytes after the last tensor", rest));
}

}  // namespace

absl::StatusOr<SafetensorsTable> ParseSafetensors(std::string_view file) {
  ASSIGN_OR_RETURN(const std::string_view header, HeaderOf(file));
  auto json = ParseJsonObject(header);
  if (!json.ok()) return Annotate("header", json.status());
  const std::string_view data = file.substr(kLengthBytes + header.size());
  SafetensorsTable tensors;
  for (const auto& [name, entry] : json->items()) {
    if (name == "__metadata__") continue;
    auto tensor = ParseTensor(entry, data);
    if (!tensor.ok()) return Annotate("tensor " + DescribeJson(name), tensor.status());
    tensors[name] = *std::move(tensor);
  }
  RETURN_IF_ERROR(CheckGapless(tensors, data));
  return tensors;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  auto tensors = ParseSafetensors(file.bytes());
  if (!tensors.ok()) return Annotate(path, tensors.status());
  return SafetensorsFile(std::move(file), *std::move(tensors));
}

}  // namespace everlong
