// Settings by name.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/attention_policy.h"

namespace everlong {

// "default", and the paper's "3k", "5k", "3k-fast" and "3k-flash".
std::vector<std::string_view> PresetNames();

// INVALID_ARGUMENT names the presets there are. "default" fits its sinks and window to the trained
// length; where that leaves no room, its mode is dense.
absl::StatusOr<AttentionSettings> Preset(std::string_view name, int64_t trained_length);

// As "3k" has hip, and "default" has scan.
SelectorSettings NamedSelector(SelectorName name);

}  // namespace everlong
