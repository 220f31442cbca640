#include "engine/jinja/access.h"

#include <algorithm>
#include <array>

#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/unicode.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// The sandbox hides what would change a dictionary, also where it has an element of that name.
bool IsHiddenMethod(const Value& value, std::string_view name) {
  constexpr std::array<std::string_view, 5> kHidden = {"clear", "pop", "popitem", "setdefault",
                                                       "update"};
  return value.dict() != nullptr &&
         std::find(kHidden.begin(), kHidden.end(), name) != kHidden.end();
}

// A method or an object's attribute, else undefined.
Value FindAttribute(Heap& heap, const Value& value, std::string_view name) {
  if (Object* object = value.object()) return object->Attribute(heap, name);
  if (const Builtin* method = FindMethod(value, name)) {
    return Value(heap.New<Function>(*method, value));
  }
  return Value(Undefined{name});
}

Value Character(Heap& heap, std::string_view text, int64_t index) {
  heap.Scan(text);
  if (index < 0) index += static_cast<int64_t>(CountCharacters(text));
  size_t at = index < 0 ? text.size() : CharacterOffset(text, static_cast<size_t>(index));
  if (at == text.size()) return Value(Undefined{"a character past the end"});
  return Value(NextCharacter(text, &at));
}

Value Element(const List& list, int64_t index) {
  const auto size = static_cast<int64_t>(list.items.size());
  if (index < 0) index += size;
  if (index < 0 || index >= size || list.flavor > Flavor::kRange) {
    return Value(Undefined{"an element past the end"});
  }
  return list.items[static_cast<size_t>(index)];
}

// First index and number of elements of a slice.
struct Range {
  int64_t begin;
  int64_t count;
  int64_t step;
};

int64_t Bound(const Value& bound, int64_t fallback, int64_t min, int64_t max, int64_t size) {
  if (bound.is_none()) return fallback;
  const int64_t index = ToInt(bound, "a slice's bound");
  return std::clamp(index < 0 ? index + size : index, min, max);
}

Range Resolve(const Value& begin, const Value& end, const Value& step, int64_t size) {
  const int64_t stride = step.is_none() ? 1 : ToInt(step, "a slice's step");
  if (stride == 0) throw Error("a slice's step must not be zero");
  const bool forward = stride > 0;
  const int64_t min = forward ? 0 : -1;
  const int64_t max = forward ? size : size - 1;
  const int64_t first = Bound(begin, forward ? min : max, min, max, size);
  const int64_t last = Bound(end, forward ? max : min, min, max, size);
  const int64_t distance = forward ? last - first : first - last;
  const auto magnitude = forward ? static_cast<uint64_t>(stride) : -static_cast<uint64_t>(stride);
  const auto count = static_cast<uint64_t>(std::max<int64_t>(distance, 0));
  return {first, static_cast<int64_t>(count / magnitude + (count % magnitude != 0 ? 1 : 0)),
          stride};
}

Value SliceText(Heap& heap, std::string_view text, const Value& begin, const Value& end,
                const Value& step) {
  heap.Scan(text);
  const Range range = Resolve(begin, end, step, static_cast<int64_t>(CountCharacters(text)));
  if (range.step == 1 || range.count == 0) {
    const size_t from = CharacterOffset(text, static_cast<size_t>(range.begin));
    const std::string_view rest = text.substr(range.count == 0 ? text.size() : from);
    return Value(rest.substr(0, CharacterOffset(rest, static_cast<size_t>(range.count))));
  }
  const std::span<const Value> characters = Elements(heap, Value(text));
  TextBuilder out(heap);
  for (int64_t i = 0; i < range.count; ++i) {
    out.Append(*characters[static_cast<size_t>(range.begin + i * range.step)].text());
  }
  return out.Finish();
}

Value SliceList(Heap& heap, const List& list, const Value& begin, const Value& end,
                const Value& step) {
  const Range range = Resolve(begin, end, step, static_cast<int64_t>(list.items.size()));
  ListBuilder items(heap);
  for (int64_t i = 0; i < range.count; ++i) {
    items.Add(list.items[static_cast<size_t>(range.begin + i * range.step)]);
  }
  return items.Finish(list.flavor);
}

}  // namespace

Value GetAttribute(Heap& heap, const Value& value, std::string_view name) {
  FailIfUndefined(value);
  const Value attribute = FindAttribute(heap, value, name);
  if (!attribute.is_undefined() || value.dict() == nullptr || IsHiddenMethod(value, name)) {
    return attribute;
  }
  const Value* element = Find(heap, *value.dict(), Value(name));
  return element == nullptr ? attribute : *element;
}

Value GetItem(Heap& heap, const Value& value, const Value& key) {
  FailIfUndefined(value);
  if (const Dict* dict = value.dict(); dict != nullptr && IsHashable(heap, key)) {
    if (const Value* element = Find(heap, *dict, key)) return *element;
  }
  if (const std::string_view* name = key.text()) return FindAttribute(heap, value, *name);
  if (key.is_whole()) {
    const int64_t index = ToInt(key, "an index");
    if (const std::string_view* text = value.text()) return Character(heap, *text, index);
    if (const List* list = value.list()) return Element(*list, index);
  }
  return Value(Undefined{"an element"});
}

Value GetSlice(Heap& heap, const Value& value, const Value& begin, const Value& end,
               const Value& step) {
  FailIfUndefined(value);
  if (const std::string_view* text = value.text()) return SliceText(heap, *text, begin, end, step);
  const List* list = value.list();
  if (list == nullptr || list->flavor > Flavor::kRange) {
    throw Error(fmt::format("{} has no slices", TypeName(value)));
  }
  return SliceList(heap, *list, begin, end, step);
}

}  // namespace everlong::jinja
