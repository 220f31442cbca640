#include <algorithm>
#include <charconv>

#include "engine/jinja/access.h"
#include "engine/jinja/arithmetic.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/print.h"
#include "engine/jinja/text_operations.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// The elements to look up one inside the other: "a.0.b" is three, an index by itself one, None no
// element at all.
std::vector<Value> Path(const Value& attribute) {
  if (attribute.is_none()) return {};
  if (attribute.text() == nullptr) return {attribute};
  std::vector<Value> path;
  std::string_view text = *attribute.text();
  while (true) {
    const std::string_view part = text.substr(0, text.find('.'));
    int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size() &&
                          part.find('-') == std::string_view::npos;
    path.push_back(is_index ? Value(index) : Value(part));
    if (part.size() == text.size()) return path;
    text.remove_prefix(part.size() + 1);
  }
}

Value LookUp(Heap& heap, Value value, const std::vector<Value>& path) {
  for (const Value& key : path) value = GetItem(heap, value, key);
  return value;
}

// What texts are compared by unless a filter is told to respect case.
Value IgnoreCase(Heap& heap, const Value& value) {
  return value.text() == nullptr ? value : Lower(heap, *value.text());
}

// What an element is sorted, compared or made unique by.
struct Key {
  std::vector<Value> path;
  bool case_sensitive;

  Value Of(Heap& heap, const Value& value) const {
    const Value key = LookUp(heap, value, path);
    return case_sensitive ? key : IgnoreCase(heap, key);
  }
};

struct Keyed {
  Value key;
  Value value;
};

// Stable, in both directions.
Value Sorted(Heap& heap, std::vector<Keyed> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? Less(heap, b.key, a.key) : Less(heap, a.key, b.key);
  });
  ListBuilder sorted(heap);
  for (const Keyed& item : items) sorted.Add(item.value);
  return sorted.Finish();
}

// The attribute may be several with commas between them.
Value Sort(const Call& call) {
  std::vector<Key> keys;
  Value attribute = call.Arg(2);
  while (attribute.text() != nullptr) {
    const std::string_view text = *attribute.text();
    const std::string_view name = text.substr(0, text.find(','));
    keys.push_back({Path(Value(name)), call.Flag(1)});
    attribute = name.size() == text.size() ? Value() : Value(text.substr(name.size() + 1));
  }
  if (keys.empty()) keys.push_back({Path(attribute), call.Flag(1)});
  std::vector<Keyed> items;
  for (const Value& value : Elements(call.heap, call.self)) {
    ListBuilder key(call.heap);
    for (const Key& part : keys) key.Add(part.Of(call.heap, value));
    items.push_back({key.Finish(), value});
  }
  return Sorted(call.heap, std::move(items), call.Flag(0));
}

Value SortDict(const Call& call) {
  const std::string_view by = call.Text(1, "key");
  if (by != "key" && by != "value") throw Error("dictsort: 'by' is neither 'key' nor 'value'");
  if (call.self.dict() == nullptr) {
    FailIfUndefined(call.self);
    throw Error(fmt::format("dictsort needs a dict, not {}", TypeName(call.self)));
  }
  const Key key{{Value(int64_t{by == "key" ? 0 : 1})}, call.Flag(0)};
  const Value pairs = Run(call.heap, *FindMethod(call.self, "items"), call.self, {});
  std::vector<Keyed> items;
  for (const Value& pair : pairs.list()->items) items.push_back({key.Of(call.heap, pair), pair});
  return Sorted(call.heap, std::move(items), call.Flag(2));
}

Value Unique(const Call& call) {
  const Key key{Path(call.Arg(1)), call.Flag(0)};
  std::vector<Value> seen;
  ListBuilder unique(call.heap);
  for (const Value& value : Elements(call.heap, call.self)) {
    const Value candidate = key.Of(call.heap, value);
    if (!IsHashable(call.heap, candidate))
      throw Error(fmt::format("unique: {} has no hash", TypeName(candidate)));
    if (std::any_of(seen.begin(), seen.end(),
                    [&](const Value& other) { return Equal(call.heap, other, candidate); })) {
      continue;
    }
    seen.push_back(candidate);
    unique.Add(value);
  }
  return unique.Finish(Flavor::kGenerator);
}

// The first of the smallest or largest elements.
template <bool kLargest>
Value Extreme(const Call& call) {
  const Key key{Path(call.Arg(1)), call.Flag(0)};
  std::optional<Keyed> best;
  for (const Value& value : Elements(call.heap, call.self)) {
    const Value candidate = key.Of(call.heap, value);
    if (!best || (kLargest ? Less(call.heap, best->key, candidate)
                           : Less(call.heap, candidate, best->key))) {
      best = Keyed{candidate, value};
    }
  }
  return best ? best->value : Value(Undefined{"the extreme of an empty sequence"});
}

Value Sum(const Call& call) {
  const std::vector<Value> path = Path(call.Arg(0));
  Value sum = call.Arg(1, Value(int64_t{0}));
  if (sum.text() != nullptr) throw Error("sum does not add strings: use join");
  for (const Value& value : Elements(call.heap, call.self)) {
    sum = Apply(call.heap, Arithmetic::kAdd, sum, LookUp(call.heap, value, path));
  }
  return sum;
}

Value LengthFilter(const Call& call) {
  return Value(Length(call.heap, call.self));
}

Value First(const Call& call) {
  const List* list = call.self.list();
  if (list != nullptr && list->flavor == Flavor::kGenerator) {
    if (list->num_taken < list->items.size()) return list->items[list->num_taken++];
  } else if (const auto items = Elements(call.heap, call.self); !items.empty()) {
    return items.front();
  }
  return Value(Undefined{"the first element of an empty sequence"});
}

// Python reverses to find the last element, which takes a sequence.
void FailIfGenerator(const Call& call) {
  if (const List* list = call.self.list(); list != nullptr && list->flavor == Flavor::kGenerator) {
    throw Error(fmt::format("{} does not take a generator: apply 'list' first", call.callee));
  }
}

Value Last(const Call& call) {
  FailIfGenerator(call);
  const std::span<const Value> items = Elements(call.heap, call.self);
  return items.empty() ? Value(Undefined{"the last element of an empty sequence"}) : items.back();
}

Value ToList(const Call& call) {
  ListBuilder list(call.heap);
  for (const Value& value : Elements(call.heap, call.self)) list.Add(value);
  return list.Finish();
}

Value Reverse(const Call& call) {
  const Value step{int64_t{-1}};
  if (call.self.text() != nullptr) return GetSlice(call.heap, call.self, Value(), Value(), step);
  const std::span<const Value> items = Elements(call.heap, call.self);
  ListBuilder reversed(call.heap);
  std::for_each(items.rbegin(), items.rend(), [&](const Value& value) { reversed.Add(value); });
  return reversed.Finish(Flavor::kGenerator);
}

Value Join(const Call& call) {
  const std::string_view separator =
      ToPrinted(call.heap, call.Arg(0, Value(std::string_view()))).view;
  const std::vector<Value> path = Path(call.Arg(1));
  TextBuilder out(call.heap);
  bool first = true;
  for (const Value& value : Elements(call.heap, call.self)) {
    if (!std::exchange(first, false)) out.Append(separator);
    Print(call.heap, LookUp(call.heap, value, path), &out);
  }
  return out.Finish();
}

Value Items(const Call& call) {
  if (call.self.is_undefined()) return ListBuilder(call.heap).Finish(Flavor::kGenerator);
  if (call.self.dict() == nullptr) {
    throw Error(fmt::format("items needs a dict, not {}", TypeName(call.self)));
  }
  ListBuilder items(call.heap);
  const Value pairs = Run(call.heap, *FindMethod(call.self, "items"), call.self, {});
  for (const Value& pair : pairs.list()->items) items.Add(pair);
  return items.Finish(Flavor::kGenerator);
}

// The filter or test that the first of `arguments` names, which is removed.
template <const Builtin* (*kFind)(std::string_view)>
const Builtin& TakeNamed(const Call& call, Arguments* arguments) {
  if (arguments->positional.empty()) throw Error(fmt::format("{} needs a name", call.callee));
  const std::string_view name = ToText(arguments->positional.front(), "a name");
  arguments->positional.erase(arguments->positional.begin());
  if (const Builtin* builtin = kFind(name)) return *builtin;
  throw Error(fmt::format("{}: there is no '{}'", call.callee, name));
}

// map(attribute=..., default=...).
Value MapAttribute(const Call& call, const Value& attribute) {
  Value fallback;
  for (const auto& [name, value] : call.rest.named) {
    if (name == "default") {
      fallback = value;
    } else if (name != "attribute") {
      throw Error(fmt::format("map takes no argument '{}'", name));
    }
  }
  ListBuilder mapped(call.heap);
  for (Value value : Elements(call.heap, call.self)) {
    for (const Value& key : Path(attribute)) {
      value = GetItem(call.heap, value, key);
      if (value.is_undefined() && !fallback.is_none()) value = fallback;
    }
    mapped.Add(value);
  }
  return mapped.Finish(Flavor::kGenerator);
}

Value Map(const Call& call) {
  ListBuilder mapped(call.heap);
  if (!IsTrue(call.self)) return mapped.Finish(Flavor::kGenerator);
  Arguments arguments = call.rest;
  if (arguments.positional.empty()) {
    for (const auto& [name, value] : arguments.named) {
      if (name == "attribute") return MapAttribute(call, value);
    }
  }
  const Builtin& filter = TakeNamed<FindFilter>(call, &arguments);
  for (const Value& value : Elements(call.heap, call.self)) {
    mapped.Add(Run(call.heap, filter, value, arguments));
  }
  return mapped.Finish(Flavor::kGenerator);
}

// The elements whose truth, or the test that is named, gives `kKeep`.
template <bool kKeep, bool kByAttribute>
Value Select(const Call& call) {
  ListBuilder selected(call.heap);
  if (!IsTrue(call.self)) return selected.Finish(Flavor::kGenerator);
  Arguments arguments = call.rest;
  std::vector<Value> path;
  if (kByAttribute) {
    if (arguments.positional.empty())
      throw Error(fmt::format("{} needs an attribute", call.callee));
    path = Path(arguments.positional.front());
    arguments.positional.erase(arguments.positional.begin());
  }
  const Builtin* test =
      arguments.positional.empty() ? nullptr : &TakeNamed<FindTest>(call, &arguments);
  for (const Value& value : Elements(call.heap, call.self)) {
    const Value subject = LookUp(call.heap, value, path);
    const Value verdict = test == nullptr ? subject : Run(call.heap, *test, subject, arguments);
    if (IsTrue(verdict) == kKeep) selected.Add(value);
  }
  return selected.Finish(Flavor::kGenerator);
}

Value Batch(const Call& call) {
  const auto size = static_cast<size_t>(std::max<int64_t>(call.Int(0, 0), 0));
  const Value fill = call.Arg(1);
  ListBuilder batches(call.heap);
  ListBuilder batch(call.heap);
  for (const Value& value : Elements(call.heap, call.self)) {
    if (batch.size() == size && size > 0) batches.Add(batch.Finish());
    batch.Add(value);
  }
  if (batch.size() > 0) {
    while (!fill.is_none() && batch.size() < size) batch.Add(fill);
    batches.Add(batch.Finish());
  }
  return batches.Finish(Flavor::kGenerator);
}

// `slices` lists of nearly the same length, the longer ones first.
Value Slice(const Call& call) {
  const int64_t slices = call.Int(0, 0);
  if (slices < 1) throw Error(fmt::format("slice: {} slices", slices));
  const std::span<const Value> items = Elements(call.heap, call.self);
  const size_t length = items.size() / static_cast<size_t>(slices);
  const size_t num_longer = items.size() % static_cast<size_t>(slices);
  ListBuilder lists(call.heap);
  auto next = items.begin();
  for (size_t i = 0; i < static_cast<size_t>(slices); ++i) {
    ListBuilder slice(call.heap);
    for (size_t j = 0; j < length + (i < num_longer ? 1 : 0); ++j) slice.Add(*next++);
    if (!call.Arg(1).is_none() && i >= num_longer) slice.Add(call.Arg(1));
    lists.Add(slice.Finish());
  }
  return lists.Finish(Flavor::kGenerator);
}

Value Default(const Call& call) {
  const bool absent = call.self.is_undefined() || (call.Flag(1) && !IsTrue(call.self));
  return absent ? call.Arg(0, Value(std::string_view())) : call.self;
}

Value Attribute(const Call& call) {
  if (call.self.dict() != nullptr && FindMethod(call.self, call.Text(0, "")) == nullptr) {
    return Value(Undefined{call.Text(0, "")});
  }
  return GetAttribute(call.heap, call.self, call.Text(0, ""));
}

}  // namespace

std::span<const Builtin> SequenceFilters() {
  static constexpr Builtin kFilters[] = {
      {"attr", "name", Attribute},
      {"batch", "linecount fill_with?", Batch},
      {"count", "/", LengthFilter},
      {"d", "default_value? boolean?", Default},
      {"default", "default_value? boolean?", Default},
      {"dictsort", "case_sensitive? by? reverse?", SortDict},
      {"first", "", First},
      {"items", "", Items},
      {"join", "d? attribute?", Join},
      {"last", "", Last},
      {"length", "/", LengthFilter},
      {"list", "", ToList},
      {"map", "*", Map},
      {"max", "case_sensitive? attribute?", Extreme<true>},
      {"min", "case_sensitive? attribute?", Extreme<false>},
      {"reject", "*", Select<false, false>},
      {"rejectattr", "*", Select<false, true>},
      {"reverse", "", Reverse},
      {"select", "*", Select<true, false>},
      {"selectattr", "*", Select<true, true>},
      {"slice", "slices fill_with?", Slice},
      {"sort", "reverse? case_sensitive? attribute?", Sort},
      {"sum", "attribute? start?", Sum},
      {"unique", "case_sensitive? attribute?", Unique},
  };
  return kFilters;
}

}  // namespace everlong::jinja
