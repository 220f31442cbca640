// The words for attention settings, in options and in layer lists.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/attention_policy.h"

namespace everlong {

// Sets one of: mode, preset, selector, positions, budget, sinks, window, refresh (numbers with
// commas between), stages (CHUNK:KEEP[:pool][:every-key] with commas between), chunk-score (path,
// last), head-reduction (kv_head, all), dilation, rerank, sieve. INVALID_ARGUMENT says what is
// wrong with the value.
absl::Status SetAttention(std::string_view name, const std::string& value,
                          AttentionOverrides& overrides);

// Layers and what differs for them: "0,1 mode=dense; 4-7 budget=4096 window=2048".
absl::Status SetAttentionLayers(const std::string& value, AttentionConfig& config);

}  // namespace everlong
