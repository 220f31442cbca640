// Checkpoints written by the tests themselves: bytes of safetensors files and whole directories.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace everlong {

struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// `header` behind its length, then `data`.
std::string SafetensorsBytes(std::string_view header, std::string_view data);
// A sound file of these tensors, back to back.
std::string SafetensorsBytes(const std::vector<TensorSpec>& tensors);

// An empty directory that lives as long as the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  void Write(std::string_view name, std::string_view contents) const;
  void Remove(std::string_view name) const;

 private:
  std::string path_;
};

}  // namespace everlong
