// Expressions and the targets of assignments.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "engine/jinja/syntax.h"
#include "engine/jinja/token_stream.h"

namespace everlong::jinja {

// Names with a meaning in macros, as far as expressions mention them.
struct SpecialNames {
  bool caller = false;
  bool varargs = false;
  bool kwargs = false;
};

// Whether the name is true, false or none, which cannot be assigned to.
bool IsConstant(std::string_view name);

// Reads from `tokens` and adds to `expressions`, both borrowed. Every function throws Error with
// the line where the source is wrong.
class ExpressionParser {
 public:
  ExpressionParser(TokenStream* tokens, std::deque<Expr>* expressions)
      : tokens_(*tokens), expressions_(*expressions) {}

  // `conditional`: whether `a if b else c` may come.
  const Expr* ParseExpression(bool conditional = true);
  // An expression, or several with commas between them.
  const Expr* ParseTuple(bool conditional = true);

  // What is assigned to: a name, a tuple of targets, or name.attribute where `namespaces`.
  const Expr* ParseTarget(bool namespaces);
  std::string ParseTargetName();

  // name(arguments), applied to `operand`.
  const Expr* ParseFilter(const Expr* operand);
  // Any number of filters, each behind a '|'. Null where there are none and `operand` is null.
  const Expr* ParseFilters(const Expr* operand);

  // Those seen since the last call.
  SpecialNames TakeSpecialNames();
  void AddSpecialNames(const SpecialNames& names);

 private:
  Expr* New(ExprKind kind, int line, std::vector<const Expr*> operands = {});

  const Expr* ParseConditional();
  const Expr* ParseOr();
  const Expr* ParseAnd();
  const Expr* ParseNot();
  const Expr* ParseCompare();
  bool TakeComparison(Comparison* comparison);
  const Expr* ParseSum();
  const Expr* ParseConcat();
  const Expr* ParseProduct();
  const Expr* ParsePower();
  const Expr* ParseUnary(bool with_filters);
  const Expr* ParsePrimary();
  const Expr* ParseName();
  const Expr* ParseNumber();
  const Expr* ParseStrings();
  const Expr* ParseParentheses();
  const Expr* ParseList();
  const Expr* ParseDict();
  const Expr* ParsePostfix(const Expr* expr);
  const Expr* ParseFiltersAndTests(const Expr* expr);
  const Expr* ParseTest(const Expr* subject);
  const Expr* ParseDot(const Expr* object);
  const Expr* ParseSubscript(const Expr* object);
  const Expr* ParseSlice(const Expr* object, const Expr* begin, int line);
  const Expr* ParseCall(const Expr* callee);
  std::vector<Argument> ParseArguments();
  Argument ParseArgument();
  const Expr* ParseTargetPart(bool namespaces);
  bool AtTupleEnd() const;

  TokenStream& tokens_;
  std::deque<Expr>& expressions_;
  SpecialNames special_names_;
};

}  // namespace everlong::jinja
