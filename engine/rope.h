// Frequencies of the rotary position embedding and how checkpoints stretch them to longer contexts.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/json_object.h"

namespace everlong {

struct RopeFrequencies {
  std::vector<float> inv_freq;  // [head_dim / 2], radians per position
  float scale = 1.0f;           // multiplies rotated queries and keys
};

struct RopeContext {
  int64_t head_dim;        // even
  int64_t trained_length;  // max_position_embeddings
  double default_theta;    // where the checkpoint names none
};

// Reads rope_theta and rope_scaling of a config.json, or rope_parameters, which newer ones have
// instead. Types default, linear, llama3 and yarn; what is bad or unsupported ends in
// config.status().
RopeFrequencies ReadRope(JsonObject& config, const RopeContext& context);

}  // namespace everlong
