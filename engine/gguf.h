// Files in the GGUF format, versions 2 and 3, little-endian: typed metadata by key, a table that
// names every tensor's type, shape and place, then the tensors' bytes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/args.h"
#include "nlohmann/json.hpp"

namespace everlong {

// Of metadata values, numbered as in the file.
enum class GgufType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

struct GgufArray {
  GgufType type = GgufType::kUint8;  // of the elements
  uint64_t size = 0;
  std::string_view bytes;  // the elements as they stand in the file, of any alignment

  // Nothing where the elements are no strings, or no numbers. Strings point into the file.
  std::optional<std::vector<std::string_view>> Strings() const;
  std::optional<std::vector<double>> Numbers() const;
};

struct GgufTensor {
  std::string type;            // as ggml calls it: "Q4_1", "IQ2_XS" ...
  std::optional<DType> dtype;  // nothing: a type that the kernels do not compute with
  std::vector<int64_t> shape;  // outermost dimension first, each at least 1
  std::string_view bytes;      // row-major, exactly this shape's; empty without a dtype
};

// Views point into the file's bytes.
struct GgufFile {
  nlohmann::json scalars = nlohmann::json::object();  // values that are no arrays, by key
  std::map<std::string, GgufArray, std::less<>> arrays;
  std::map<std::string, GgufTensor, std::less<>> tensors;
};

// Reads a whole file's bytes. Damage is INVALID_ARGUMENT and the message names the key or tensor.
absl::StatusOr<GgufFile> ParseGguf(std::string_view file);

}  // namespace everlong
