#include "tests/checkpoint/gguf_files.h"

#include <algorithm>
#include <utility>

namespace everlong {
namespace {

constexpr size_t kAlignment = 32;

void Align(std::string& bytes) {
  bytes.resize((bytes.size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
}

template <typename T>
std::string Concatenated(const std::vector<T>& values) {
  std::string bytes;
  for (const T& value : values) bytes += GgufBytes(value);
  return bytes;
}

}  // namespace

std::string GgufBytes(std::string_view text) {
  return GgufBytes(uint64_t{text.size()}).append(text);
}

std::string GgufArrayBytes(GgufType type, uint64_t size, std::string_view elements) {
  return GgufBytes(static_cast<uint32_t>(type)).append(GgufBytes(size)).append(elements);
}

std::string GgufValueEntry(std::string_view key, GgufType type, std::string_view value) {
  return GgufBytes(key).append(GgufBytes(static_cast<uint32_t>(type))).append(value);
}

std::string GgufTensorEntry(std::string_view name, const std::vector<int64_t>& dimensions,
                            uint32_t type, uint64_t offset) {
  return GgufBytes(name)
      .append(GgufBytes(static_cast<uint32_t>(dimensions.size())))
      .append(Concatenated(dimensions))
      .append(GgufBytes(type))
      .append(GgufBytes(offset));
}

std::string GgufFileBytes(const std::vector<std::string>& values,
                          const std::vector<std::string>& tensors, std::string_view data,
                          uint32_t version) {
  std::string file = "GGUF" + GgufBytes(version);
  file += GgufBytes(uint64_t{tensors.size()}) + GgufBytes(uint64_t{values.size()});
  for (const std::string& value : values) file += value;
  for (const std::string& tensor : tensors) file += tensor;
  Align(file);
  return file.append(data);
}

void GgufBuilder::SetRaw(const std::string& key, GgufType type, std::string_view value) {
  values_[key] = GgufBytes(static_cast<uint32_t>(type)).append(value);
}

void GgufBuilder::Set(const std::string& key, std::string_view text) {
  SetRaw(key, GgufType::kString, GgufBytes(text));
}

void GgufBuilder::Set(const std::string& key, bool value) {
  SetRaw(key, GgufType::kBool, GgufBytes(value));
}

void GgufBuilder::Set(const std::string& key, uint32_t value) {
  SetRaw(key, GgufType::kUint32, GgufBytes(value));
}

void GgufBuilder::Set(const std::string& key, float value) {
  SetRaw(key, GgufType::kFloat32, GgufBytes(value));
}

void GgufBuilder::Set(const std::string& key, const std::vector<std::string>& texts) {
  std::string elements;
  for (const std::string& text : texts) elements += GgufBytes(std::string_view(text));
  SetRaw(key, GgufType::kArray, GgufArrayBytes(GgufType::kString, texts.size(), elements));
}

void GgufBuilder::Set(const std::string& key, const std::vector<int32_t>& numbers) {
  SetRaw(key, GgufType::kArray,
         GgufArrayBytes(GgufType::kInt32, numbers.size(), Concatenated(numbers)));
}

void GgufBuilder::Set(const std::string& key, const std::vector<float>& numbers) {
  SetRaw(key, GgufType::kArray,
         GgufArrayBytes(GgufType::kFloat32, numbers.size(), Concatenated(numbers)));
}

void GgufBuilder::AddTensor(const std::string& name, GgmlType type, std::vector<int64_t> shape,
                            std::string bytes) {
  tensors_[name] = {type, std::move(shape), std::move(bytes)};
}

std::string GgufBuilder::Bytes() const {
  std::vector<std::string> values;
  for (const auto& [key, value] : values_)
    values.push_back(GgufBytes(std::string_view(key)) + value);
  std::vector<std::string> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors_) {
    std::vector<int64_t> dimensions = tensor.shape;
    std::reverse(dimensions.begin(), dimensions.end());
    entries.push_back(
        GgufTensorEntry(name, dimensions, static_cast<uint32_t>(tensor.type), data.size()));
    data += tensor.bytes;
    Align(data);
  }
  return GgufFileBytes(values, entries, data);
}

}  // namespace everlong
