// Operations on text that filters and methods share.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

enum class Side : uint8_t { kLeft, kRight, kBoth };

Value Upper(Heap& heap, std::string_view text);
Value Lower(Heap& heap, std::string_view text);
// First character in title case, the others in lower case.
Value Capitalize(Heap& heap, std::string_view text);

// Without the characters in the text `characters`, or white space where that is None, at `side`.
std::string_view Strip(Heap& heap, std::string_view text, const Value& characters, Side side);

// The first `count` occurrences replaced, all where it is negative.
Value Replace(Heap& heap, std::string_view text, std::string_view from, std::string_view to,
              int64_t count);

// Filled with `fill`, one character, up to `width` characters; the text is centered for kBoth.
Value Pad(Heap& heap, std::string_view text, int64_t width, std::string_view fill, Side side);

}  // namespace everlong::jinja
