#include "engine/jinja/expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// Names of constants cannot be assigned to.
bool IsConstant(std::string_view name) {
  constexpr std::array<std::string_view, 6> kConstants = {"true", "false", "none",
                                                          "True", "False", "None"};
  return std::find(kConstants.begin(), kConstants.end(), name) != kConstants.end();
}

}  // namespace

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

const Expr* ExpressionParser::ParsePrimary() {
  switch (tokens_.Current().kind) {
    case TokenKind::kName:
      return ParseName();
    case TokenKind::kString:
      return ParseStrings();
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ParseNumber();
    default:
      break;
  }
  if (tokens_.AtOperator("(")) return ParseParentheses();
  if (tokens_.AtOperator("[")) return ParseList();
  if (tokens_.AtOperator("{")) return ParseDict();
  tokens_.FailUnexpected("an expression");
}

const Expr* ExpressionParser::ParseName() {
  const Token& token = tokens_.Next();
  if (IsConstant(token.text)) {
    Expr* constant = New(ExprKind::kLiteral, token.line);
    const char initial = static_cast<char>(token.text[0] | 0x20);
    if (initial != 'n') constant->value = Value(initial == 't');
    return constant;
  }
  AddSpecialNames({.caller = token.text == "caller",
                   .varargs = token.text == "varargs",
                   .kwargs = token.text == "kwargs"});
  Expr* name = New(ExprKind::kName, token.line);
  name->name = token.text;
  return name;
}

const Expr* ExpressionParser::ParseNumber() {
  const Token& token = tokens_.Next();
  Expr* number = New(ExprKind::kLiteral, token.line);
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  int64_t whole = 0;
  double fraction = 0;
  const bool is_float = token.kind == TokenKind::kFloat;
  const auto result =
      is_float ? std::from_chars(begin, end, fraction) : std::from_chars(begin, end, whole);
  if (result.ec != std::errc()) {
    throw Error(fmt::format("the number {} is out of range", token.text), token.line);
  }
  number->value = is_float ? Value(fraction) : Value(whole);
  return number;
}

// Adjacent strings are one.
const Expr* ExpressionParser::ParseStrings() {
  Expr* string = New(ExprKind::kLiteral, tokens_.line());
  while (tokens_.At(TokenKind::kString)) string->name += tokens_.Next().text;
  string->value = Value(std::string_view{string->name});
  return string;
}

const Expr* ExpressionParser::ParseParentheses() {
  const int line = tokens_.Next().line;
  if (tokens_.TakeOperator(")")) return New(ExprKind::kTuple, line);
  const Expr* expr = ParseTuple();
  tokens_.ExpectOperator(")");
  return expr;
}

const Expr* ExpressionParser::ParseList() {
  Expr* list = New(ExprKind::kList, tokens_.Next().line);
  while (!tokens_.TakeOperator("]")) {
    if (!list->operands.empty()) {
      tokens_.ExpectOperator(",");
      if (tokens_.TakeOperator("]")) break;
    }
    list->operands.push_back(ParseExpression());
  }
  return list;
}

const Expr* ExpressionParser::ParseDict() {
  Expr* dict = New(ExprKind::kDict, tokens_.Next().line);
  while (!tokens_.TakeOperator("}")) {
    if (!dict->operands.empty()) {
      tokens_.ExpectOperator(",");
      if (tokens_.TakeOperator("}")) break;
    }
    dict->operands.push_back(ParseExpression());
    tokens_.ExpectOperator(":");
    dict->operands.push_back(ParseExpression());
  }
  return dict;
}

const Expr* ExpressionParser::ParsePostfix(const Expr* expr) {
  while (true) {
    if (tokens_.AtOperator(".")) {
      expr = ParseDot(expr);
    } else if (tokens_.AtOperator("[")) {
      expr = ParseSubscript(expr);
    } else if (tokens_.AtOperator("(")) {
      expr = ParseCall(expr);
    } else {
      return expr;
    }
  }
}

const Expr* ExpressionParser::ParseFiltersAndTests(const Expr* expr) {
  while (true) {
    if (tokens_.AtOperator("|")) {
      expr = ParseFilters(expr);
    } else if (tokens_.AtName("is")) {
      expr = ParseTest(expr);
    } else if (tokens_.AtOperator("(")) {
      expr = ParseCall(expr);
    } else {
      return expr;
    }
  }
}

const Expr* ExpressionParser::ParseFilters(const Expr* operand) {
  while (tokens_.TakeOperator("|")) operand = ParseFilter(operand);
  return operand;
}

const Expr* ExpressionParser::ParseFilter(const Expr* operand) {
  const Token& name = tokens_.Expect(TokenKind::kName, "the name of a filter");
  Expr* filter = New(ExprKind::kFilter, name.line, {operand});
  filter->name = name.text;
  filter->builtin = FindFilter(filter->name);
  if (tokens_.AtOperator("(")) filter->arguments = ParseArguments();
  return filter;
}

// subject is [not] name [argument], or name(arguments).
const Expr* ExpressionParser::ParseTest(const Expr* subject) {
  const int line = tokens_.Next().line;
  const bool negated = tokens_.TakeName("not");
  Expr* test = New(ExprKind::kTest, line, {subject});
  test->name = tokens_.Expect(TokenKind::kName, "the name of a test").text;
  test->builtin = FindTest(test->name);
  const bool at_argument = tokens_.At(TokenKind::kName) || tokens_.At(TokenKind::kString) ||
                           tokens_.At(TokenKind::kInteger) || tokens_.At(TokenKind::kFloat) ||
                           tokens_.AtOperator("[") || tokens_.AtOperator("{");
  if (tokens_.AtOperator("(")) {
    test->arguments = ParseArguments();
  } else if (at_argument && !tokens_.AtAnyName({"else", "or", "and"})) {
    if (tokens_.AtName("is")) tokens_.Fail("tests cannot be chained with 'is'");
    test->arguments.push_back({"", ParsePostfix(ParsePrimary())});
  }
  return negated ? New(ExprKind::kNot, line, {test}) : test;
}

const Expr* ExpressionParser::ParseDot(const Expr* object) {
  const int line = tokens_.Next().line;
  if (tokens_.At(TokenKind::kInteger)) {
    const Expr* index = ParseNumber();
    return New(ExprKind::kItem, line, {object, index});
  }
  Expr* attribute = New(ExprKind::kAttribute, line, {object});
  attribute->name = tokens_.Expect(TokenKind::kName, "an attribute").text;
  return attribute;
}

const Expr* ExpressionParser::ParseSubscript(const Expr* object) {
  const int line = tokens_.Next().line;
  const Expr* key = tokens_.AtOperator(":") ? nullptr : ParseExpression();
  if (tokens_.TakeOperator(":")) return ParseSlice(object, key, line);
  if (tokens_.AtOperator(",")) {
    Expr* tuple = New(ExprKind::kTuple, line, {key});
    while (tokens_.TakeOperator(",")) tuple->operands.push_back(ParseExpression());
    key = tuple;
  }
  tokens_.ExpectOperator("]");
  return New(ExprKind::kItem, line, {object, key});
}

// Behind the first colon.
const Expr* ExpressionParser::ParseSlice(const Expr* object, const Expr* begin, int line) {
  const auto parse_bound = [this]() -> const Expr* {
    return tokens_.AtOperator(":") || tokens_.AtOperator("]") ? nullptr : ParseExpression();
  };
  const Expr* end = parse_bound();
  const Expr* step = tokens_.TakeOperator(":") ? parse_bound() : nullptr;
  tokens_.ExpectOperator("]");
  return New(ExprKind::kSlice, line, {object, begin, end, step});
}

const Expr* ExpressionParser::ParseCall(const Expr* callee) {
  Expr* call = New(ExprKind::kCall, tokens_.line(), {callee});
  call->arguments = ParseArguments();
  return call;
}

std::vector<Argument> ExpressionParser::ParseArguments() {
  tokens_.ExpectOperator("(");
  std::vector<Argument> arguments;
  std::string last_name;
  while (!tokens_.TakeOperator(")")) {
    if (!arguments.empty()) {
      tokens_.ExpectOperator(",");
      if (tokens_.TakeOperator(")")) break;
    }
    arguments.push_back(ParseArgument());
    const std::string& name = arguments.back().name;
    if (last_name == "**" || (name.empty() && !last_name.empty())) {
      tokens_.Fail("the arguments are out of order");
    }
    last_name = name;
  }
  return arguments;
}

Argument ExpressionParser::ParseArgument() {
  for (const std::string_view spread : {"*", "**"}) {
    if (tokens_.TakeOperator(spread)) return {std::string(spread), ParseExpression()};
  }
  if (tokens_.At(TokenKind::kName) && tokens_.IsFollowedBy(TokenKind::kOperator, "=")) {
    std::string name = tokens_.Next().text;
    tokens_.Next();
    return {std::move(name), ParseExpression()};
  }
  return {"", ParseExpression()};
}

}  // namespace everlong::jinja
