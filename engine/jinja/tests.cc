#include "engine/jinja/arithmetic.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/print.h"

namespace everlong::jinja {
namespace {

Value IsDefined(const Call& call) {
  return Value(!call.self.is_undefined());
}

Value IsUndefined(const Call& call) {
  return Value(call.self.is_undefined());
}

Value IsNone(const Call& call) {
  return Value(call.self.is_none());
}

template <typename T>
Value IsOfType(const Call& call) {
  return Value{call.self.As<T>() != nullptr};
}

template <bool kFlag>
Value IsFlag(const Call& call) {
  const bool* flag = call.self.As<bool>();
  return Value(flag != nullptr && *flag == kFlag);
}

Value IsNumber(const Call& call) {
  return Value(call.self.is_number());
}

// What has a length and takes indices, which an undefined value claims too.
Value IsSequence(const Call& call) {
  const List* list = call.self.list();
  return Value(list != nullptr ? list->flavor <= Flavor::kRange : IsIterable(call.self));
}

Value IsIterableTest(const Call& call) {
  return Value(IsIterable(call.self));
}

Value IsCallable(const Call& call) {
  const Object* object = call.self.object();
  return Value(call.self.is_undefined() || (object != nullptr && object->IsCallable()));
}

Value IsEscaped(const Call& call) {
  const Text* text = call.self.As<Text>();
  return Value(text != nullptr && text->safe);
}

Value Remainder(const Call& call, const Value& divisor) {
  return Apply(call.heap, Arithmetic::kModulo, call.self, divisor);
}

template <int64_t kRemainder>
Value HasParity(const Call& call) {
  return Value(Equal(call.heap, Remainder(call, Value(int64_t{2})), Value{kRemainder}));
}

Value IsDivisibleBy(const Call& call) {
  return Value(Equal(call.heap, Remainder(call, call.Arg(0)), Value(int64_t{0})));
}

Value IsEqual(const Call& call) {
  return Value(Equal(call.heap, call.self, call.Arg(0)));
}

Value IsUnequal(const Call& call) {
  return Value(!Equal(call.heap, call.self, call.Arg(0)));
}

Value IsLess(const Call& call) {
  return Value(Less(call.heap, call.self, call.Arg(0)));
}

Value IsLessOrEqual(const Call& call) {
  return Value(LessOrEqual(call.heap, call.self, call.Arg(0)));
}

Value IsGreater(const Call& call) {
  return Value(Less(call.heap, call.Arg(0), call.self));
}

Value IsGreaterOrEqual(const Call& call) {
  return Value(LessOrEqual(call.heap, call.Arg(0), call.self));
}

Value IsIn(const Call& call) {
  return Value(Contains(call.heap, call.Arg(0), call.self));
}

// Python's `is`: the same object, for which equal scalars pass.
Value IsSame(const Call& call) {
  const Value other = call.Arg(0);
  if (call.self.type() != other.type()) return Value(false);
  if (call.self.list() != nullptr) return Value(call.self.list() == other.list());
  if (call.self.dict() != nullptr) return Value(call.self.dict() == other.dict());
  return IsEqual(call);
}

template <const Builtin* (*kFind)(std::string_view)>
Value IsNameOf(const Call& call) {
  const std::string_view* name = call.self.text();
  return Value(name != nullptr && kFind(*name) != nullptr);
}

template <bool kUpper>
Value HasCase(const Call& call) {
  const Value text = Value(ToPrinted(call.heap, call.self));
  return Run(call.heap, *FindMethod(text, kUpper ? "isupper" : "islower"), text, {});
}

}  // namespace

std::span<const Builtin> Tests() {
  static constexpr Builtin kTests[] = {
      {"!=", "other /", IsUnequal},
      {"<", "other /", IsLess},
      {"<=", "other /", IsLessOrEqual},
      {"==", "other /", IsEqual},
      {">", "other /", IsGreater},
      {">=", "other /", IsGreaterOrEqual},
      {"boolean", "", IsOfType<bool>},
      {"callable", "/", IsCallable},
      {"defined", "", IsDefined},
      {"divisibleby", "num", IsDivisibleBy},
      {"eq", "other /", IsEqual},
      {"equalto", "other /", IsEqual},
      {"escaped", "", IsEscaped},
      {"even", "", HasParity<0>},
      {"false", "", IsFlag<false>},
      {"filter", "", IsNameOf<FindFilter>},
      {"float", "", IsOfType<double>},
      {"ge", "other /", IsGreaterOrEqual},
      {"greaterthan", "other /", IsGreater},
      {"gt", "other /", IsGreater},
      {"in", "seq", IsIn},
      {"integer", "", IsOfType<int64_t>},
      {"iterable", "", IsIterableTest},
      {"le", "other /", IsLessOrEqual},
      {"lessthan", "other /", IsLess},
      {"lower", "", HasCase<false>},
      {"lt", "other /", IsLess},
      {"mapping", "", IsOfType<const Dict*>},
      {"ne", "other /", IsUnequal},
      {"none", "", IsNone},
      {"number", "", IsNumber},
      {"odd", "", HasParity<1>},
      {"sameas", "other", IsSame},
      {"sequence", "", IsSequence},
      {"string", "", IsOfType<Text>},
      {"test", "", IsNameOf<FindTest>},
      {"true", "", IsFlag<true>},
      {"undefined", "", IsUndefined},
      {"upper", "", HasCase<true>},
  };
  return kTests;
}

}  // namespace everlong::jinja
