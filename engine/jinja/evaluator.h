// Expressions to values.
#pragma once

#include "engine/jinja/heap.h"
#include "engine/jinja/scope.h"
#include "engine/jinja/syntax.h"

namespace everlong::jinja {

// Every function throws Error with the line of the innermost expression that failed.
class Evaluator {
 public:
  explicit Evaluator(Heap& heap) : heap_(heap) {}

  Value Evaluate(const Expr& expr, const Scope& scope);

  // A chain of filters, applied to a block's body.
  Value Filter(const Expr& expr, const Scope& scope, const Value& body);

  // A call with one more argument, the macro that a call block makes of its body.
  Value CallWith(const Expr& expr, const Scope& scope, const Value& caller);

 private:
  Value Dispatch(const Expr& expr, const Scope& scope);
  Value Name(const Expr& expr, const Scope& scope);
  Value MakeList(const Expr& expr, const Scope& scope);
  Value MakeDict(const Expr& expr, const Scope& scope);
  Value Slice(const Expr& expr, const Scope& scope);
  Value ApplyFilter(const Expr& expr, const Scope& scope, const Value& operand);
  Value Test(const Expr& expr, const Scope& scope);
  Value Concat(const Expr& expr, const Scope& scope);
  Value Compare(const Expr& expr, const Scope& scope);
  bool Holds(Comparison comparison, const Value& a, const Value& b);
  Value Conditional(const Expr& expr, const Scope& scope);
  Arguments EvaluateArguments(const Expr& expr, const Scope& scope);
  void Spread(const Value& value, bool named, Arguments* arguments);

  Heap& heap_;
};

}  // namespace everlong::jinja
