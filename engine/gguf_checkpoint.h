// A checkpoint in one GGUF file.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"

namespace everlong {

// Errors name the file and the metadata key or the tensor.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path);

}  // namespace everlong
