#include "engine/jinja/evaluator.h"

#include "engine/jinja/access.h"
#include "engine/jinja/arithmetic.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/print.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// Runs `evaluate` and gives its errors a line.
template <typename Function>
Value AtLine(int line, Function evaluate) {
  try {
    return evaluate();
  } catch (Error& error) {
    if (error.line == 0) error.line = line;
    throw;
  }
}

}  // namespace

Value Evaluator::Evaluate(const Expr& expr, const Scope& scope) {
  return AtLine(expr.line, [&] {
    const Nesting nesting(heap_);
    heap_.Work(1);
    return Dispatch(expr, scope);
  });
}

Value Evaluator::Dispatch(const Expr& expr, const Scope& scope) {
  const auto operand = [&](size_t i) { return Evaluate(*expr.operands[i], scope); };
  switch (expr.kind) {
    case ExprKind::kLiteral:
      return expr.value;
    case ExprKind::kName:
      return Name(expr, scope);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return MakeList(expr, scope);
    case ExprKind::kDict:
      return MakeDict(expr, scope);
    case ExprKind::kAttribute:
      return GetAttribute(heap_, operand(0), expr.name);
    case ExprKind::kItem: {
      const Value object = operand(0);
      return GetItem(heap_, object, operand(1));
    }
    case ExprKind::kSlice:
      return Slice(expr, scope);
    case ExprKind::kCall:
      return CallWith(expr, scope, Value());
    case ExprKind::kFilter:
      return ApplyFilter(expr, scope, operand(0));
    case ExprKind::kTest:
      return Test(expr, scope);
    case ExprKind::kNot:
      return Value(!IsTrue(operand(0)));
    case ExprKind::kNegate:
      return Negate(operand(0));
    case ExprKind::kPlus:
      return Apply(heap_, Arithmetic::kSubtract, operand(0), Value(int64_t{0}));
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      const Value left = operand(0);
      return IsTrue(left) == (expr.kind == ExprKind::kAnd) ? operand(1) : left;
    }
    case ExprKind::kArithmetic: {
      const Value left = operand(0);
      return Apply(heap_, expr.arithmetic, left, operand(1));
    }
    case ExprKind::kConcat:
      return Concat(expr, scope);
    case ExprKind::kCompare:
      return Compare(expr, scope);
    case ExprKind::kConditional:
      return Conditional(expr, scope);
  }
  return Value();
}

Value Evaluator::Name(const Expr& expr, const Scope& scope) {
  if (const Value* value = scope.Find(expr.name)) return *value;
  if (const Builtin* function = FindFunction(expr.name)) {
    return Value(heap_.New<Function>(*function, Value()));
  }
  return Value(Undefined{expr.name});
}

Value Evaluator::MakeList(const Expr& expr, const Scope& scope) {
  ListBuilder items(heap_);
  for (const Expr* operand : expr.operands) items.Add(Evaluate(*operand, scope));
  return items.Finish(expr.kind == ExprKind::kTuple ? Flavor::kTuple : Flavor::kList);
}

Value Evaluator::MakeDict(const Expr& expr, const Scope& scope) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < expr.operands.size(); i += 2) {
    const Value key = Evaluate(*expr.operands[i], scope);
    SetItem(heap_, key, Evaluate(*expr.operands[i + 1], scope), &items);
  }
  return heap_.NewDict(std::move(items));
}

Value Evaluator::Slice(const Expr& expr, const Scope& scope) {
  const Value object = Evaluate(*expr.operands[0], scope);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (const Expr* bound = expr.operands[i + 1]) bounds[i] = Evaluate(*bound, scope);
  }
  return GetSlice(heap_, object, bounds[0], bounds[1], bounds[2]);
}

Value Evaluator::CallWith(const Expr& expr, const Scope& scope, const Value& caller) {
  const Value callee = Evaluate(*expr.operands[0], scope);
  Arguments arguments = EvaluateArguments(expr, scope);
  if (!caller.is_none()) arguments.named.emplace_back("caller", caller);
  FailIfUndefined(callee);
  Object* object = callee.object();
  if (object == nullptr) throw Error(fmt::format("{} cannot be called", TypeName(callee)));
  return object->Call(heap_, arguments);
}

Value Evaluator::Filter(const Expr& expr, const Scope& scope, const Value& body) {
  return AtLine(expr.line, [&] {
    const Nesting nesting(heap_);
    const Expr* operand = expr.operands[0];
    return ApplyFilter(expr, scope, operand == nullptr ? body : Filter(*operand, scope, body));
  });
}

Value Evaluator::ApplyFilter(const Expr& expr, const Scope& scope, const Value& operand) {
  if (expr.builtin == nullptr) throw Error(fmt::format("there is no filter '{}'", expr.name));
  return Run(heap_, *expr.builtin, operand, EvaluateArguments(expr, scope));
}

Value Evaluator::Test(const Expr& expr, const Scope& scope) {
  if (expr.builtin == nullptr) throw Error(fmt::format("there is no test '{}'", expr.name));
  const Value subject = Evaluate(*expr.operands[0], scope);
  return Run(heap_, *expr.builtin, subject, EvaluateArguments(expr, scope));
}

Value Evaluator::Concat(const Expr& expr, const Scope& scope) {
  TextBuilder text(heap_);
  for (const Expr* operand : expr.operands) Print(heap_, Evaluate(*operand, scope), &text);
  return text.Finish();
}

Value Evaluator::Compare(const Expr& expr, const Scope& scope) {
  Value left = Evaluate(*expr.operands[0], scope);
  for (size_t i = 0; i < expr.comparisons.size(); ++i) {
    const Value right = Evaluate(*expr.operands[i + 1], scope);
    if (!Holds(expr.comparisons[i], left, right)) return Value(false);
    left = right;
  }
  return Value(true);
}

bool Evaluator::Holds(Comparison comparison, const Value& a, const Value& b) {
  switch (comparison) {
    case Comparison::kEqual:
      return Equal(heap_, a, b);
    case Comparison::kNotEqual:
      return !Equal(heap_, a, b);
    case Comparison::kLess:
      return Less(heap_, a, b);
    case Comparison::kLessOrEqual:
      return LessOrEqual(heap_, a, b);
    case Comparison::kGreater:
      return Less(heap_, b, a);
    case Comparison::kGreaterOrEqual:
      return LessOrEqual(heap_, b, a);
    case Comparison::kIn:
      return Contains(heap_, b, a);
    case Comparison::kNotIn:
      return !Contains(heap_, b, a);
  }
  return false;
}

Value Evaluator::Conditional(const Expr& expr, const Scope& scope) {
  if (IsTrue(Evaluate(*expr.operands[1], scope))) return Evaluate(*expr.operands[0], scope);
  if (expr.operands[2] != nullptr) return Evaluate(*expr.operands[2], scope);
  return Value(Undefined{"the result of an 'if' without 'else'"});
}

Arguments Evaluator::EvaluateArguments(const Expr& expr, const Scope& scope) {
  Arguments arguments;
  for (const Argument& argument : expr.arguments) {
    const Value value = Evaluate(*argument.value, scope);
    if (argument.name.empty()) {
      arguments.positional.push_back(value);
    } else if (argument.name == "*" || argument.name == "**") {
      Spread(value, argument.name == "**", &arguments);
    } else {
      arguments.named.emplace_back(argument.name, value);
    }
  }
  return arguments;
}

void Evaluator::Spread(const Value& value, bool named, Arguments* arguments) {
  if (!named) {
    const std::span<const Value> items = Elements(heap_, value);
    heap_.Work(items.size());
    heap_.Reserve(items.size_bytes());
    arguments->positional.insert(arguments->positional.end(), items.begin(), items.end());
    return;
  }
  const Dict* dict = value.dict();
  if (dict == nullptr) throw Error(fmt::format("** needs a dict, not {}", TypeName(value)));
  heap_.Reserve(dict->items.size() * sizeof(dict->items[0]));
  for (const auto& [key, item] : dict->items) {
    heap_.Work(1);
    arguments->named.emplace_back(ToText(key, "the name of an argument"), item);
  }
}

}  // namespace everlong::jinja
