// Objects that a template holds: namespaces, loops, cyclers, joiners.
#pragma once

#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// namespace(...): the only value that a template can change.
class Namespace : public Object {
 public:
  std::string_view TypeName() const override { return "namespace"; }
  Value Attribute(Heap& heap, std::string_view name) override;
  // Error for names that begin with an underscore.
  void Set(Heap& heap, std::string_view name, const Value& value);

 private:
  std::vector<std::pair<std::string_view, Value>> attributes_;
};

// `loop` in the body of a for.
class Loop : public Object {
 public:
  explicit Loop(std::span<const Value> items) : items_(items) {}
  std::string_view TypeName() const override { return "loop"; }
  Value Attribute(Heap& heap, std::string_view name) override;
  void MoveTo(size_t index) { index_ = static_cast<int64_t>(index); }

  // Methods of the template.
  Value Cycle(const std::vector<Value>& values) const;
  bool Changed(Heap& heap, const std::vector<Value>& values);

 private:
  Value Item(int64_t index) const;

  const std::span<const Value> items_;
  int64_t index_ = 0;
  const List* last_changed_ = nullptr;
};

// cycler(a, b, ...): next() gives one after the other and starts again.
class Cycler : public Object {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::string_view TypeName() const override { return "cycler"; }
  Value Attribute(Heap& heap, std::string_view name) override;

  Value Next();
  void Reset() { at_ = 0; }

 private:
  const std::vector<Value> items_;
  size_t at_ = 0;
};

// joiner(separator): a call gives nothing the first time, the separator from then on.
class Joiner : public Object {
 public:
  explicit Joiner(const Value& separator) : separator_(separator) {}
  std::string_view TypeName() const override { return "joiner"; }
  bool IsCallable() const override { return true; }
  Value Call(Heap& heap, const Arguments& arguments) override;

 private:
  const Value separator_;
  bool used_ = false;
};

}  // namespace everlong::jinja
