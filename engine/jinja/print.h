// Values as text: Python's str(), repr() and json.dumps().
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// str(). Error for what Python prints with an address, e.g. functions.
void Print(Heap& heap, const Value& value, TextBuilder* out);
// repr(): like str(), but texts are quoted.
void PrintRepr(Heap& heap, const Value& value, TextBuilder* out);

// str() as a text value; texts stay as they are.
Text ToPrinted(Heap& heap, const Value& value);

// Shortest digits that read back.
std::string FloatText(double value);

// HTML's five special characters as entities.
void AppendEscaped(std::string_view text, TextBuilder* out);

struct JsonStyle {
  std::optional<std::string> indent;  // of one level; none: on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ascii_only = false;
};
Value ToJson(Heap& heap, const Value& value, const JsonStyle& style);

}  // namespace everlong::jinja
