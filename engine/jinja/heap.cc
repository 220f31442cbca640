#include "engine/jinja/heap.h"

#include <algorithm>
#include <limits>

#include "engine/text.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace everlong::jinja {
namespace {

int DepthOf(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  return 0;
}

void CheckDepth(int depth) {
  if (depth > Heap::kMaxDepth) {
    throw Error(fmt::format("lists or dictionaries are nested {} deep, the limit is {}", depth,
                            Heap::kMaxDepth));
  }
}

}  // namespace

void Heap::Work(size_t steps) {
  steps_ += steps;
  if (steps_ > limits_.steps) {
    throw Error(fmt::format("rendering takes more than {} steps", limits_.steps));
  }
}

void Heap::Reserve(size_t bytes) {
  if (bytes > limits_.bytes - bytes_) {
    throw Error(fmt::format("rendering takes more than {} bytes", limits_.bytes));
  }
  bytes_ += bytes;
}

void Heap::Enter() {
  if (nesting_ == limits_.nesting) {
    throw Error(fmt::format("more than {} expressions, statements and calls inside each other",
                            limits_.nesting));
  }
  ++nesting_;
}

Value Heap::Keep(std::string text) {
  return Value(std::string_view{texts_.emplace_back(std::move(text))});
}

Value Heap::NewText(std::string text) {
  Reserve(text.size() + sizeof(std::string));
  return Keep(std::move(text));
}

Value Heap::NewDict(std::vector<std::pair<Value, Value>> items) {
  Work(items.size());
  Reserve(items.size() * sizeof(items[0]) + sizeof(Dict));
  int depth = 1;
  for (const auto& [key, item] : items) depth = std::max(depth, DepthOf(item) + 1);
  CheckDepth(depth);
  return Value(&dicts_.emplace_back(Dict{std::move(items), static_cast<uint16_t>(depth)}));
}

Value Heap::FromJson(const nlohmann::ordered_json& json) {
  return FromJson(json, 0);
}

Value Heap::FromJson(const nlohmann::ordered_json& json, int depth) {
  CheckDepth(depth);
  Work(1);
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned() &&
      json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    throw Error(fmt::format("{} in the context is too large: integers have 64 bits", json.dump()));
  }
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number_float()) return Value(json.get<double>());
  if (json.is_string()) return BorrowText(json.get_ref<const std::string&>());
  if (json.is_array()) {
    ListBuilder list(*this);
    for (const auto& item : json) list.Add(FromJson(item, depth + 1));
    return list.Finish();
  }
  if (!json.is_object()) return Value();
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, item] : json.get_ref<const nlohmann::ordered_json::object_t&>()) {
    items.emplace_back(BorrowText(key), FromJson(item, depth + 1));
  }
  return NewDict(std::move(items));
}

Value Heap::BorrowText(std::string_view text) {
  Scan(text);
  if (const size_t at = FindInvalidUtf8(text); at != std::string_view::npos) {
    throw Error(fmt::format("a string in the context is not valid UTF-8 at byte {}", at));
  }
  return Value(text);
}

void TextBuilder::Append(std::string_view text) {
  heap_.Reserve(text.size());
  text_ += text;
}

void TextBuilder::Append(size_t count, char c) {
  heap_.Reserve(count);
  text_.append(count, c);
}

Value TextBuilder::Finish() {
  heap_.Reserve(sizeof(std::string));
  return heap_.Keep(std::move(text_));
}

void ListBuilder::Add(const Value& value) {
  heap_.Work(1);
  heap_.Reserve(sizeof(Value));
  items_.push_back(value);
}

Value ListBuilder::Finish(Flavor flavor) {
  heap_.Reserve(sizeof(List));
  int depth = 1;
  for (const Value& item : items_) depth = std::max(depth, DepthOf(item) + 1);
  CheckDepth(depth);
  return Value(
      &heap_.lists_.emplace_back(List{std::move(items_), flavor, static_cast<uint16_t>(depth)}));
}

}  // namespace everlong::jinja
