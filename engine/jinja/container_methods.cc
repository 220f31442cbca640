#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

Value Count(const Call& call) {
  int64_t count = 0;
  for (const Value& item : call.self.list()->items) {
    count += Equal(call.heap, item, call.Arg(0)) ? 1 : 0;
  }
  return Value(count);
}

Value Index(const Call& call) {
  const std::vector<Value>& items = call.self.list()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (Equal(call.heap, items[i], call.Arg(0))) return Value(static_cast<int64_t>(i));
  }
  throw Error("index: the value is not in the list");
}

// Nothing can change a list or dictionary, so that a copy need not be one.
Value Copy(const Call& call) {
  return call.self;
}

Value Get(const Call& call) {
  if (!IsHashable(call.heap, call.Arg(0)))
    throw Error(fmt::format("{} is no key", TypeName(call.Arg(0))));
  const Value* item = Find(call.heap, *call.self.dict(), call.Arg(0));
  return item == nullptr ? call.Arg(1) : *item;
}

Value Keys(const Call& call) {
  ListBuilder keys(call.heap);
  for (const auto& item : call.self.dict()->items) keys.Add(item.first);
  return keys.Finish(Flavor::kKeys);
}

Value Values(const Call& call) {
  ListBuilder values(call.heap);
  for (const auto& item : call.self.dict()->items) values.Add(item.second);
  return values.Finish(Flavor::kValues);
}

Value Items(const Call& call) {
  ListBuilder items(call.heap);
  for (const auto& [key, value] : call.self.dict()->items) {
    ListBuilder pair(call.heap);
    pair.Add(key);
    pair.Add(value);
    items.Add(pair.Finish(Flavor::kTuple));
  }
  return items.Finish(Flavor::kItems);
}

}  // namespace

std::span<const Builtin> SequenceMethods() {
  static constexpr Builtin kMethods[] = {
      {"count", "value /", Count},
      {"index", "value /", Index},
  };
  return kMethods;
}

std::span<const Builtin> ListMethods() {
  static constexpr Builtin kMethods[] = {{"copy", "", Copy}};
  return kMethods;
}

std::span<const Builtin> DictMethods() {
  static constexpr Builtin kMethods[] = {
      {"copy", "", Copy}, {"get", "key default? /", Get}, {"items", "", Items},
      {"keys", "", Keys}, {"values", "", Values},
  };
  return kMethods;
}

}  // namespace everlong::jinja
