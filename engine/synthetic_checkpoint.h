// Checkpoints without files: random weights in a published model's geometry, to measure speed with.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"

namespace everlong {

inline constexpr std::string_view kSyntheticPrefix = "synthetic:";

// `name` is "synthetic:GEOMETRY[,layers=N][,type=TYPE]", e.g. "synthetic:llama-3.1-8b,layers=4".
// TYPE is the matrices' (bf16 where none is named); vectors are f32. Weights are the same every
// time; tensors share their bytes. The tokenizer has a token for each byte. INVALID_ARGUMENT lists
// what there is.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSynthetic(std::string_view name);

}  // namespace everlong
