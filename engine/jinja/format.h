// Python's two ways to format text: `"%s" % x` and `"{}".format(x)`.
#pragma once

#include <string_view>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// `values` is a tuple, a dictionary for %(name)s, or the only value.
Value FormatPercent(Heap& heap, std::string_view format, const Value& values);

// Fields are {}, {0}, {name} with .attribute and [element], !s and !r; no format after a colon.
Value FormatBraces(Heap& heap, std::string_view format, const Arguments& arguments);

}  // namespace everlong::jinja
