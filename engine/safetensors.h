// Files of tensors in the safetensors format: 8 bytes little-endian header length, a JSON header
// that names every tensor's element type, shape and place, then the tensors' bytes without gaps.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/mapped_file.h"

namespace everlong {

struct SafetensorsTensor {
  std::string dtype;           // as the header spells it: "F32", "BF16", "I64" ...
  std::vector<int64_t> shape;  // for F32, F16 and BF16 the bytes have exactly this shape's size
  std::string_view bytes;      // row-major, little-endian, of any alignment
};

using SafetensorsTable = std::map<std::string, SafetensorsTensor, std::less<>>;

// The tensors of a whole file's bytes, which the views point into. Damage is INVALID_ARGUMENT and
// the message names the tensor.
absl::StatusOr<SafetensorsTable> ParseSafetensors(std::string_view file);

// Immutable: any thread may read.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const SafetensorsTable& tensors() const { return tensors_; }

 private:
  SafetensorsFile(MappedFile file, SafetensorsTable tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  MappedFile file_;
  SafetensorsTable tensors_;
};

}  // namespace everlong
