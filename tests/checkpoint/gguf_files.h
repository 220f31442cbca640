// GGUF files written by the tests themselves.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "engine/gguf.h"

namespace everlong {

// As ggml numbers them.
enum class GgmlType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ8_0 = 8, kIq2Xs = 17 };

std::string GgufBytes(std::string_view text);  // behind its length
template <typename T>
requires std::is_arithmetic_v<T> std::string GgufBytes(T number) {
  return {reinterpret_cast<const char*>(&number), sizeof(number)};
}

// What is given last under a key or name counts; tests begin with a sound file and change one part.
class GgufBuilder {
 public:
  void Set(const std::string& key, std::string_view text);
  void Set(const std::string& key, const char* text) { Set(key, std::string_view(text)); }
  void Set(const std::string& key, bool value);
  void Set(const std::string& key, uint32_t value);
  void Set(const std::string& key, float value);
  void Set(const std::string& key, const std::vector<std::string>& texts);
  void Set(const std::string& key, const std::vector<int32_t>& numbers);
  void Set(const std::string& key, const std::vector<float>& numbers);
  // `value` as it stands in the file, behind its type.
  void SetRaw(const std::string& key, GgufType type, std::string_view value);
  void Unset(const std::string& key) { values_.erase(key); }

  // `shape` outermost first. Tensors are placed in the order of their names.
  void AddTensor(const std::string& name, GgmlType type, std::vector<int64_t> shape,
                 std::string bytes);
  void RemoveTensor(const std::string& name) { tensors_.erase(name); }

  std::string Bytes() const;

 private:
  struct Tensor {
    GgmlType type;
    std::vector<int64_t> shape;
    std::string bytes;
  };

  std::map<std::string, std::string> values_;  // type and value
  std::map<std::string, Tensor> tensors_;
};

// An array's type, length and elements.
std::string GgufArrayBytes(GgufType type, uint64_t size, std::string_view elements);

// The entry of the tensor table, `dimensions` innermost first.
std::string GgufTensorEntry(std::string_view name, const std::vector<int64_t>& dimensions,
                            uint32_t type, uint64_t offset);

// A file of these parts: entries of the metadata and of the tensor table, then `data`, aligned.
std::string GgufFileBytes(const std::vector<std::string>& values,
                          const std::vector<std::string>& tensors, std::string_view data,
                          uint32_t version = 3);
std::string GgufValueEntry(std::string_view key, GgufType type, std::string_view value);

}  // namespace everlong
