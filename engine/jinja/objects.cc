#include "engine/jinja/objects.h"

#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

Value CycleLoop(const Call& call) {
  return static_cast<const Loop*>(call.self.object())->Cycle(call.rest.positional);
}

Value HasLoopChanged(const Call& call) {
  return Value(static_cast<Loop*>(call.self.object())->Changed(call.heap, call.rest.positional));
}

Value NextOfCycler(const Call& call) {
  return static_cast<Cycler*>(call.self.object())->Next();
}

Value ResetCycler(const Call& call) {
  static_cast<Cycler*>(call.self.object())->Reset();
  return Value();
}

constexpr Builtin kLoopMethods[] = {{"cycle", "*", CycleLoop}, {"changed", "*", HasLoopChanged}};
constexpr Builtin kCyclerMethods[] = {{"next", "", NextOfCycler}, {"reset", "", ResetCycler}};

Value Method(Heap& heap, std::span<const Builtin> methods, Object* object, std::string_view name) {
  for (const Builtin& method : methods) {
    if (method.name == name) return Value(heap.New<Function>(method, Value(object)));
  }
  return Value(Undefined{name});
}

}  // namespace

Value Namespace::Attribute(Heap& heap, std::string_view name) {
  heap.Work(attributes_.size() / 16 + 1);
  for (const auto& attribute : attributes_) {
    if (attribute.first == name) return attribute.second;
  }
  return Value(Undefined{name});
}

void Namespace::Set(Heap& heap, std::string_view name, const Value& value) {
  if (name.starts_with('_')) {
    throw Error(fmt::format("a namespace has no attribute '{}' with an underscore", name));
  }
  heap.Work(attributes_.size() / 16 + 1);
  for (auto& attribute : attributes_) {
    if (attribute.first != name) continue;
    attribute.second = value;
    return;
  }
  heap.Reserve(sizeof(attributes_[0]));
  attributes_.emplace_back(name, value);
}

Value Loop::Item(int64_t index) const {
  const bool exists = index >= 0 && index < static_cast<int64_t>(items_.size());
  return exists ? items_[static_cast<size_t>(index)] : Value(Undefined{"an item outside the loop"});
}

Value Loop::Attribute(Heap& heap, std::string_view name) {
  const auto size = static_cast<int64_t>(items_.size());
  if (name == "index") return Value(index_ + 1);
  if (name == "index0") return Value(index_);
  if (name == "first") return Value(index_ == 0);
  if (name == "last") return Value(index_ + 1 == size);
  if (name == "length") return Value(size);
  if (name == "revindex") return Value(size - index_);
  if (name == "revindex0") return Value(size - index_ - 1);
  if (name == "previtem") return Item(index_ - 1);
  if (name == "nextitem") return Item(index_ + 1);
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  return Method(heap, kLoopMethods, this, name);
}

Value Loop::Cycle(const std::vector<Value>& values) const {
  if (values.empty()) throw Error("loop.cycle: no values");
  return values[static_cast<size_t>(index_) % values.size()];
}

bool Loop::Changed(Heap& heap, const std::vector<Value>& values) {
  ListBuilder builder(heap);
  for (const Value& value : values) builder.Add(value);
  const Value current = builder.Finish(Flavor::kTuple);
  if (last_changed_ != nullptr && Equal(heap, current, Value(last_changed_))) return false;
  last_changed_ = current.list();
  return true;
}

Value Cycler::Attribute(Heap& heap, std::string_view name) {
  return name == "current" ? items_[at_] : Method(heap, kCyclerMethods, this, name);
}

Value Cycler::Next() {
  const Value item = items_[at_];
  at_ = (at_ + 1) % items_.size();
  return item;
}

Value Joiner::Call(Heap&, const Arguments&) {
  return std::exchange(used_, true) ? separator_ : Value(std::string_view());
}

}  // namespace everlong::jinja
