// Any bytes as a safetensors file: refused, or a table of tensors that lie inside it.
#include <cstddef>
#include <cstdint>

#include "engine/check.h"
#include "engine/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto tensors = everlong::ParseSafetensors(file);
  if (!tensors.ok()) {
    EVERLONG_CHECK(!tensors.status().message().empty());
    return 0;
  }
  size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : *tensors) {
    for (char byte : tensor.bytes) sum += static_cast<unsigned char>(byte);
    total += tensor.bytes.size();
  }
  EVERLONG_CHECK(total <= size && sum <= 255 * size);
  return 0;
}
