// Python's ==, <, in and iteration.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

bool Equal(Heap& heap, const Value& a, const Value& b);

// Numbers, texts and sequences of the same type have an order; Error for other pairs.
bool Less(Heap& heap, const Value& a, const Value& b);
bool LessOrEqual(Heap& heap, const Value& a, const Value& b);

bool Contains(Heap& heap, const Value& container, const Value& item);

// Elements of a sequence, keys of a dictionary, characters of a text; Error for the rest. Takes
// what a generator has left.
std::span<const Value> Elements(Heap& heap, const Value& value);
bool IsIterable(const Value& value);

// What len() gives; Error where the value has no length.
int64_t Length(Heap& heap, const Value& value);

// Lists and dictionaries cannot be keys.
bool IsHashable(Heap& heap, const Value& value);

// The value at `key`, or null.
const Value* Find(Heap& heap, const Dict& dict, const Value& key);

// Replaces the value at `key`, or adds it last. Error where `key` cannot be one.
void SetItem(Heap& heap, const Value& key, const Value& value,
             std::vector<std::pair<Value, Value>>* items);

}  // namespace everlong::jinja
