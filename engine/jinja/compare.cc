#include "engine/jinja/compare.h"

#include <algorithm>

#include "engine/jinja/unicode.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// Only these compare by their elements.
bool IsListOrTuple(const List& list) {
  return list.flavor == Flavor::kList || list.flavor == Flavor::kTuple;
}

bool EqualLists(Heap& heap, const List& a, const List& b) {
  if (a.flavor != b.flavor || a.items.size() != b.items.size()) return false;
  if (!IsListOrTuple(a) && a.flavor != Flavor::kRange) return &a == &b;
  return std::equal(a.items.begin(), a.items.end(), b.items.begin(),
                    [&](const Value& x, const Value& y) { return Equal(heap, x, y); });
}

bool EqualDicts(Heap& heap, const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  return std::all_of(a.items.begin(), a.items.end(), [&](const auto& item) {
    const Value* other = Find(heap, b, item.first);
    return other != nullptr && Equal(heap, item.second, *other);
  });
}

bool EqualNumbers(const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) return ToInt(a, "a") == ToInt(b, "b");
  return ToDouble(a, "a") == ToDouble(b, "b");
}

bool LessLists(Heap& heap, const List& a, const List& b) {
  const size_t common = std::min(a.items.size(), b.items.size());
  for (size_t i = 0; i < common; ++i) {
    if (!Equal(heap, a.items[i], b.items[i])) return Less(heap, a.items[i], b.items[i]);
  }
  return a.items.size() < b.items.size();
}

std::span<const Value> ElementsOfList(const List& list) {
  if (list.flavor != Flavor::kGenerator) return list.items;
  return std::span(list.items).subspan(std::exchange(list.num_taken, list.items.size()));
}

// Index of `key`, items.size() where it is not there.
size_t Position(Heap& heap, const std::vector<std::pair<Value, Value>>& items, const Value& key) {
  const std::string_view* text = key.text();
  heap.Work(items.size() / 16 + 1);
  const auto it = std::find_if(items.begin(), items.end(), [&](const auto& item) {
    const std::string_view* other = item.first.text();
    if (text != nullptr && other != nullptr && text->size() != other->size()) return false;
    return Equal(heap, key, item.first);
  });
  return static_cast<size_t>(it - items.begin());
}

}  // namespace

bool Equal(Heap& heap, const Value& a, const Value& b) {
  heap.Work(1);
  if (a.is_number() && b.is_number()) return EqualNumbers(a, b);
  if (a.type() != b.type()) return false;
  if (const std::string_view* text = a.text()) {
    heap.Scan(*text);
    return *text == *b.text();
  }
  if (a.list() != nullptr) return EqualLists(heap, *a.list(), *b.list());
  if (a.dict() != nullptr) return EqualDicts(heap, *a.dict(), *b.dict());
  return a.object() == b.object();
}

bool Less(Heap& heap, const Value& a, const Value& b) {
  heap.Work(1);
  if (a.is_whole() && b.is_whole()) return ToInt(a, "a") < ToInt(b, "b");
  if (a.is_number() && b.is_number()) return ToDouble(a, "a") < ToDouble(b, "b");
  if (a.text() != nullptr && b.text() != nullptr) {
    heap.Scan(*a.text());
    return *a.text() < *b.text();  // UTF-8 sorts like its code points
  }
  if (a.list() != nullptr && b.list() != nullptr && a.list()->flavor == b.list()->flavor &&
      IsListOrTuple(*a.list())) {
    return LessLists(heap, *a.list(), *b.list());
  }
  throw Error(fmt::format("{} and {} have no order", TypeName(a), TypeName(b)));
}

bool LessOrEqual(Heap& heap, const Value& a, const Value& b) {
  return Less(heap, a, b) || Equal(heap, a, b);
}

bool Contains(Heap& heap, const Value& container, const Value& item) {
  if (const std::string_view* text = container.text()) {
    const std::string_view sought = ToText(item, "what is sought in a string");
    heap.Search(*text, sought);
    return text->find(sought) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (!IsHashable(heap, item)) throw Error(fmt::format("{} cannot be a key", TypeName(item)));
    return Find(heap, *dict, item) != nullptr;
  }
  const std::span<const Value> items = Elements(heap, container);
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& other) { return Equal(heap, item, other); });
}

std::span<const Value> Elements(Heap& heap, const Value& value) {
  if (value.is_undefined()) return {};
  if (const List* list = value.list()) return ElementsOfList(*list);
  if (!IsIterable(value)) throw Error(fmt::format("{} is not iterable", TypeName(value)));
  ListBuilder items(heap);
  if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) items.Add(item.first);
  } else {
    const std::string_view text = *value.text();
    for (size_t at = 0; at < text.size();) items.Add(Value(NextCharacter(text, &at)));
  }
  return items.Finish().list()->items;
}

bool IsIterable(const Value& value) {
  return value.is_undefined() || value.text() != nullptr || value.list() != nullptr ||
         value.dict() != nullptr;
}

int64_t Length(Heap& heap, const Value& value) {
  if (value.is_undefined()) return 0;
  if (const std::string_view* text = value.text()) {
    heap.Scan(*text);
    return static_cast<int64_t>(CountCharacters(*text));
  }
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->items.size());
  const List* list = value.list();
  if (list == nullptr || list->flavor == Flavor::kGenerator) {
    throw Error(fmt::format("{} has no length", TypeName(value)));
  }
  return static_cast<int64_t>(list->items.size());
}

bool IsHashable(Heap& heap, const Value& value) {
  heap.Work(1);
  if (value.dict() != nullptr) return false;
  const List* list = value.list();
  if (list == nullptr || list->flavor == Flavor::kRange) return true;
  return list->flavor == Flavor::kTuple &&
         std::all_of(list->items.begin(), list->items.end(),
                     [&](const Value& item) { return IsHashable(heap, item); });
}

const Value* Find(Heap& heap, const Dict& dict, const Value& key) {
  const size_t at = Position(heap, dict.items, key);
  return at == dict.items.size() ? nullptr : &dict.items[at].second;
}

void SetItem(Heap& heap, const Value& key, const Value& value,
             std::vector<std::pair<Value, Value>>* items) {
  if (!IsHashable(heap, key)) throw Error(fmt::format("{} cannot be a key", TypeName(key)));
  if (const size_t at = Position(heap, *items, key); at < items->size()) {
    (*items)[at].second = value;
  } else {
    items->emplace_back(key, value);
  }
}

}  // namespace everlong::jinja
