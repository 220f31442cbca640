#include "engine/jinja/arithmetic.h"

#include <cmath>
#include <limits>

#include "engine/jinja/format.h"
#include "engine/jinja/print.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

std::string_view Symbol(Arithmetic operation) {
  constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kSymbols[static_cast<size_t>(operation)];
}

[[noreturn]] void FailOperands(Arithmetic operation, const Value& a, const Value& b) {
  FailIfUndefined(a);
  FailIfUndefined(b);
  throw Error(fmt::format("{} {} {} is not possible", TypeName(a), Symbol(operation), TypeName(b)));
}

[[noreturn]] void FailOverflow() {
  throw Error("an integer leaves the range of 64 bits");
}

Value WholePower(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (true) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) FailOverflow();
    exponent >>= 1;
    if (exponent == 0) return Value(result);
    if (__builtin_mul_overflow(base, base, &base)) FailOverflow();
  }
}

// Rounds towards minus infinity, where C++ rounds towards zero.
Value WholeFloorDivide(int64_t a, int64_t b) {
  if (b == 0) throw Error("division by zero");
  if (a == std::numeric_limits<int64_t>::min() && b == -1) FailOverflow();
  const bool rounds_up = a % b != 0 && (a < 0) != (b < 0);
  return Value(a / b - (rounds_up ? 1 : 0));
}

Value WholeModulo(int64_t a, int64_t b) {
  if (b == 0) throw Error("division by zero");
  if (b == -1) return Value(int64_t{0});
  const int64_t remainder = a % b;
  return Value(remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder);
}

struct Division {
  double quotient;
  double remainder;
};

// The remainder has the divisor's sign; the quotient is the whole number that fits it.
Division FloorDivide(double a, double b) {
  if (b == 0.0) throw Error("division by zero");
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder == 0.0) {
    remainder = std::copysign(0.0, b);
  } else if ((b < 0) != (remainder < 0)) {
    remainder += b;
    quotient -= 1.0;
  }
  if (quotient == 0.0) return {std::copysign(0.0, a / b), remainder};
  const double floor = std::floor(quotient);
  return {quotient - floor > 0.5 ? floor + 1.0 : floor, remainder};
}

double Power(double base, double exponent) {
  if (base == 0.0 && exponent < 0.0) throw Error("zero to a negative power");
  const double result = std::pow(base, exponent);
  if (std::isnan(result) && !std::isnan(base) && !std::isnan(exponent)) {
    throw Error("a negative number to a fractional power is complex");
  }
  if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) {
    throw Error("the result of ** is too large");
  }
  return result;
}

Value ApplyToFloats(Arithmetic operation, double a, double b) {
  switch (operation) {
    case Arithmetic::kAdd:
      return Value(a + b);
    case Arithmetic::kSubtract:
      return Value(a - b);
    case Arithmetic::kMultiply:
      return Value(a * b);
    case Arithmetic::kDivide:
      if (b == 0.0) throw Error("division by zero");
      return Value(a / b);
    case Arithmetic::kFloorDivide:
      return Value(FloorDivide(a, b).quotient);
    case Arithmetic::kModulo:
      return Value(FloorDivide(a, b).remainder);
    case Arithmetic::kPower:
      return Value(Power(a, b));
  }
  return Value();
}

Value ApplyToWholes(Arithmetic operation, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (operation) {
    case Arithmetic::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Arithmetic::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Arithmetic::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Arithmetic::kFloorDivide:
      return WholeFloorDivide(a, b);
    case Arithmetic::kModulo:
      return WholeModulo(a, b);
    case Arithmetic::kPower:
      if (b >= 0) return WholePower(a, b);
      [[fallthrough]];
    case Arithmetic::kDivide:
      return ApplyToFloats(operation, static_cast<double>(a), static_cast<double>(b));
  }
  if (overflow) FailOverflow();
  return Value(result);
}

Value Join(Heap& heap, const Text& a, const Text& b) {
  TextBuilder text(heap);
  const bool safe = a.safe || b.safe;
  for (const Text& part : {a, b}) {
    if (safe && !part.safe) {
      AppendEscaped(part.view, &text);
    } else {
      text.Append(part.view);
    }
  }
  return Value(Text{*text.Finish().text(), safe});
}

Value Join(Heap& heap, const List& a, const List& b) {
  ListBuilder items(heap);
  for (const Value& item : a.items) items.Add(item);
  for (const Value& item : b.items) items.Add(item);
  return items.Finish(a.flavor);
}

bool CanJoin(const Value& value) {
  const List* list = value.list();
  return list != nullptr && (list->flavor == Flavor::kList || list->flavor == Flavor::kTuple);
}

Value Repeat(Heap& heap, const Value& value, int64_t count) {
  if (const Text* text = value.As<Text>()) {
    TextBuilder repeated(heap);
    for (int64_t i = 0; i < count && !text->view.empty(); ++i) {
      heap.Work(1);
      repeated.Append(text->view);
    }
    return Value(Text{*repeated.Finish().text(), text->safe});
  }
  ListBuilder repeated(heap);
  for (int64_t i = 0; i < count && !value.list()->items.empty(); ++i) {
    for (const Value& item : value.list()->items) repeated.Add(item);
  }
  return repeated.Finish(value.list()->flavor);
}

bool CanRepeat(const Value& value) {
  return value.text() != nullptr || CanJoin(value);
}

}  // namespace

Value Apply(Heap& heap, Arithmetic operation, const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) {
    return ApplyToWholes(operation, ToInt(a, "operand"), ToInt(b, "operand"));
  }
  if (a.is_number() && b.is_number()) {
    return ApplyToFloats(operation, ToDouble(a, "operand"), ToDouble(b, "operand"));
  }
  if (operation == Arithmetic::kAdd) {
    if (a.text() != nullptr && b.text() != nullptr) return Join(heap, *a.As<Text>(), *b.As<Text>());
    if (CanJoin(a) && CanJoin(b) && a.list()->flavor == b.list()->flavor) {
      return Join(heap, *a.list(), *b.list());
    }
  } else if (operation == Arithmetic::kMultiply) {
    if (CanRepeat(a) && b.is_whole()) return Repeat(heap, a, ToInt(b, "operand"));
    if (CanRepeat(b) && a.is_whole()) return Repeat(heap, b, ToInt(a, "operand"));
  } else if (operation == Arithmetic::kModulo && a.text() != nullptr) {
    return FormatPercent(heap, *a.text(), b);
  }
  FailOperands(operation, a, b);
}

Value Negate(const Value& value) {
  if (const double* number = value.As<double>()) return Value(-*number);
  return ApplyToWholes(Arithmetic::kSubtract, 0, ToInt(value, "the operand of '-'"));
}

}  // namespace everlong::jinja
