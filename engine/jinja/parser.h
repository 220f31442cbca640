// Template source to its tree. The dialect is what transformers sets up: break and continue, and
// {% generation %} blocks; no inheritance and no includes, for which there is nothing to load.
#pragma once

#include <memory>
#include <string_view>

#include "engine/jinja/syntax.h"

namespace everlong::jinja {

inline constexpr size_t kMaxTemplateBytes = 1 << 20;

// Throws Error with the line.
std::unique_ptr<const Program> ParseTemplate(std::string_view source);

}  // namespace everlong::jinja
