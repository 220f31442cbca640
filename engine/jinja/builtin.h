// What the language brings along: filters, tests, methods of Python's types, global functions.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// One call, its arguments sorted into the callee's parameters.
struct Call {
  Heap& heap;
  std::string_view callee;
  Value self;                              // what stands left of '|', 'is' or '.'
  std::vector<std::optional<Value>> args;  // one for each parameter
  Arguments rest;                          // the others, for callees that take any

  // An absent argument reads as `fallback`.
  Value Arg(size_t i, const Value& fallback = Value()) const { return args[i].value_or(fallback); }
  int64_t Int(size_t i, int64_t fallback) const;
  std::string_view Text(size_t i, std::string_view fallback) const;
  bool Flag(size_t i) const { return args[i].has_value() && IsTrue(*args[i]); }
};

struct Builtin {
  std::string_view name;
  // Names with blanks between them. "?" ends an optional one. A last "/" means by position only, a
  // last "*" that any other arguments are taken too.
  std::string_view parameters;
  Value (*run)(const Call& call);
};

// Error where `arguments` do not fit the parameters.
Value Run(Heap& heap, const Builtin& builtin, const Value& self, const Arguments& arguments);

// Null where there is none of that name.
const Builtin* FindFilter(std::string_view name);
const Builtin* FindTest(std::string_view name);
const Builtin* FindMethod(const Value& self, std::string_view name);
const Builtin* FindFunction(std::string_view name);

// A builtin as a value: a global function, or a method with the value it was taken from.
class Function : public Object {
 public:
  Function(const Builtin& builtin, const Value& self) : builtin_(builtin), self_(self) {}
  std::string_view TypeName() const override { return "function"; }
  bool IsCallable() const override { return true; }
  Value Call(Heap& heap, const Arguments& arguments) override {
    return Run(heap, builtin_, self_, arguments);
  }

 private:
  const Builtin& builtin_;
  const Value self_;
};

// The tables that the functions above search.
std::span<const Builtin> TextFilters();
std::span<const Builtin> NumberFilters();
std::span<const Builtin> SequenceFilters();
std::span<const Builtin> Tests();
std::span<const Builtin> TextMethods();
std::span<const Builtin> SequenceMethods();
std::span<const Builtin> ListMethods();  // that other sequences do not have
std::span<const Builtin> DictMethods();
std::span<const Builtin> Functions();

}  // namespace everlong::jinja
