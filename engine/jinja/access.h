// Attributes, elements and slices.
#pragma once

#include <string_view>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// value.name: a method, else the dictionary's element. Undefined where there is neither; Error
// where `value` is undefined.
Value GetAttribute(Heap& heap, const Value& value, std::string_view name);

// value[key]: an element, else the method of that name.
Value GetItem(Heap& heap, const Value& value, const Value& key);

// value[begin:end:step]; None stands for an absent bound. Error where `value` has no slices.
Value GetSlice(Heap& heap, const Value& value, const Value& begin, const Value& end,
               const Value& step);

}  // namespace everlong::jinja
