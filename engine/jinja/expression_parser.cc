#include "engine/jinja/expression_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "fmt/format.h"

namespace everlong::jinja {

bool IsConstant(std::string_view name) {
  constexpr std::array<std::string_view, 6> kConstants = {"true", "false", "none",
                                                          "True", "False", "None"};
  return std::find(kConstants.begin(), kConstants.end(), name) != kConstants.end();
}

Expr* ExpressionParser::New(ExprKind kind, int line, std::vector<const Expr*> operands) {
  Expr& expr = expressions_.emplace_back();
  expr.kind = kind;
  expr.line = line;
  expr.operands = std::move(operands);
  return &expr;
}

SpecialNames ExpressionParser::TakeSpecialNames() {
  return std::exchange(special_names_, {});
}

void ExpressionParser::AddSpecialNames(const SpecialNames& names) {
  special_names_.caller |= names.caller;
  special_names_.varargs |= names.varargs;
  special_names_.kwargs |= names.kwargs;
}

const Expr* ExpressionParser::ParseExpression(bool conditional) {
  const Depth depth(&tokens_);
  return conditional ? ParseConditional() : ParseOr();
}

bool ExpressionParser::AtTupleEnd() const {
  return tokens_.At(TokenKind::kOutputEnd) || tokens_.At(TokenKind::kBlockEnd) ||
         tokens_.AtOperator(")");
}

const Expr* ExpressionParser::ParseTuple(bool conditional) {
  const int line = tokens_.line();
  const Expr* first = ParseExpression(conditional);
  if (!tokens_.AtOperator(",")) return first;
  Expr* tuple = New(ExprKind::kTuple, line, {first});
  while (tokens_.TakeOperator(",") && !AtTupleEnd()) {
    tuple->operands.push_back(ParseExpression(conditional));
  }
  return tuple;
}

const Expr* ExpressionParser::ParseTarget(bool namespaces) {
  const Depth depth(&tokens_);
  const int line = tokens_.line();
  const Expr* first = ParseTargetPart(namespaces);
  if (!tokens_.AtOperator(",")) return first;
  Expr* tuple = New(ExprKind::kTuple, line, {first});
  while (tokens_.TakeOperator(",") && !AtTupleEnd()) {
    tuple->operands.push_back(ParseTargetPart(namespaces));
  }
  return tuple;
}

const Expr* ExpressionParser::ParseTargetPart(bool namespaces) {
  const int line = tokens_.line();
  if (tokens_.TakeOperator("(")) {
    const Expr* inner = ParseTarget(/*namespaces=*/false);
    tokens_.ExpectOperator(")");
    return inner;
  }
  Expr* name = New(ExprKind::kName, line);
  name->name = ParseTargetName();
  if (!namespaces || !tokens_.TakeOperator(".")) return name;
  Expr* attribute = New(ExprKind::kAttribute, line, {name});
  attribute->name = tokens_.Expect(TokenKind::kName, "an attribute").text;
  return attribute;
}

std::string ExpressionParser::ParseTargetName() {
  const Token& token = tokens_.Expect(TokenKind::kName, "a name");
  if (IsConstant(token.text)) {
    throw Error(fmt::format("'{}' cannot be assigned to", token.text), token.line);
  }
  return token.text;
}

const Expr* ExpressionParser::ParseConditional() {
  int line = tokens_.line();
  const Expr* expr = ParseOr();
  while (tokens_.TakeName("if")) {
    const Expr* condition = ParseOr();
    const Expr* otherwise = tokens_.TakeName("else") ? ParseExpression() : nullptr;
    expr = New(ExprKind::kConditional, std::exchange(line, tokens_.line()),
               {expr, condition, otherwise});
  }
  return expr;
}

const Expr* ExpressionParser::ParseOr() {
  const int line = tokens_.line();
  const Expr* left = ParseAnd();
  while (tokens_.TakeName("or")) left = New(ExprKind::kOr, line, {left, ParseAnd()});
  return left;
}

const Expr* ExpressionParser::ParseAnd() {
  const int line = tokens_.line();
  const Expr* left = ParseNot();
  while (tokens_.TakeName("and")) left = New(ExprKind::kAnd, line, {left, ParseNot()});
  return left;
}

const Expr* ExpressionParser::ParseNot() {
  const int line = tokens_.line();
  if (!tokens_.TakeName("not")) return ParseCompare();
  const Depth depth(&tokens_);
  return New(ExprKind::kNot, line, {ParseNot()});
}

bool ExpressionParser::TakeComparison(Comparison* comparison) {
  constexpr std::pair<std::string_view, Comparison> kOperators[] = {
      {"==", Comparison::kEqual},  {"!=", Comparison::kNotEqual},
      {"<", Comparison::kLess},    {"<=", Comparison::kLessOrEqual},
      {">", Comparison::kGreater}, {">=", Comparison::kGreaterOrEqual},
  };
  for (const auto& [text, meaning] : kOperators) {
    *comparison = meaning;
    if (tokens_.TakeOperator(text)) return true;
  }
  const bool negated = tokens_.AtName("not") && tokens_.IsFollowedBy(TokenKind::kName, "in");
  if (negated) tokens_.Next();
  *comparison = negated ? Comparison::kNotIn : Comparison::kIn;
  return tokens_.TakeName("in");
}

const Expr* ExpressionParser::ParseCompare() {
  const int line = tokens_.line();
  const Expr* first = ParseSum();
  Comparison comparison{};
  if (!TakeComparison(&comparison)) return first;
  Expr* chain = New(ExprKind::kCompare, line, {first});
  do {
    chain->comparisons.push_back(comparison);
    chain->operands.push_back(ParseSum());
  } while (TakeComparison(&comparison));
  return chain;
}

const Expr* ExpressionParser::ParseSum() {
  const int line = tokens_.line();
  const Expr* left = ParseConcat();
  while (tokens_.AtOperator("+") || tokens_.AtOperator("-")) {
    const bool adds = tokens_.Next().text == "+";
    Expr* sum = New(ExprKind::kArithmetic, line, {left, ParseConcat()});
    sum->arithmetic = adds ? Arithmetic::kAdd : Arithmetic::kSubtract;
    left = sum;
  }
  return left;
}

const Expr* ExpressionParser::ParseConcat() {
  const int line = tokens_.line();
  const Expr* first = ParseProduct();
  if (!tokens_.AtOperator("~")) return first;
  Expr* concat = New(ExprKind::kConcat, line, {first});
  while (tokens_.TakeOperator("~")) concat->operands.push_back(ParseProduct());
  return concat;
}

const Expr* ExpressionParser::ParseProduct() {
  constexpr std::pair<std::string_view, Arithmetic> kOperators[] = {
      {"*", Arithmetic::kMultiply},
      {"/", Arithmetic::kDivide},
      {"//", Arithmetic::kFloorDivide},
      {"%", Arithmetic::kModulo},
  };
  const int line = tokens_.line();
  const Expr* left = ParsePower();
  while (true) {
    const auto* it = std::find_if(std::begin(kOperators), std::end(kOperators),
                                  [this](const auto& o) { return tokens_.AtOperator(o.first); });
    if (it == std::end(kOperators)) return left;
    tokens_.Next();
    Expr* product = New(ExprKind::kArithmetic, line, {left, ParsePower()});
    product->arithmetic = it->second;
    left = product;
  }
}

// Binds to the left, unlike Python's.
const Expr* ExpressionParser::ParsePower() {
  const int line = tokens_.line();
  const Expr* left = ParseUnary(/*with_filters=*/true);
  while (tokens_.TakeOperator("**")) {
    Expr* power = New(ExprKind::kArithmetic, line, {left, ParseUnary(/*with_filters=*/true)});
    power->arithmetic = Arithmetic::kPower;
    left = power;
  }
  return left;
}

const Expr* ExpressionParser::ParseUnary(bool with_filters) {
  const Depth depth(&tokens_);
  const int line = tokens_.line();
  const Expr* expr = nullptr;
  if (tokens_.TakeOperator("-")) {
    expr = New(ExprKind::kNegate, line, {ParseUnary(/*with_filters=*/false)});
  } else if (tokens_.TakeOperator("+")) {
    expr = New(ExprKind::kPlus, line, {ParseUnary(/*with_filters=*/false)});
  } else {
    expr = ParsePrimary();
  }
  expr = ParsePostfix(expr);
  return with_filters ? ParseFiltersAndTests(expr) : expr;
}

}  // namespace everlong::jinja
