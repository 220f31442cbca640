// Runs the tree of a template.
#pragma once

#include <string>

#include "engine/jinja/heap.h"
#include "engine/jinja/syntax.h"
#include "nlohmann/json_fwd.hpp"

namespace everlong::jinja {

// `context` is an object of global variables. Throws Error with the line.
std::string Render(const Program& program, const nlohmann::ordered_json& context,
                   const Limits& limits = {});

}  // namespace everlong::jinja
