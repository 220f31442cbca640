#include <charconv>
#include <utility>

#include "engine/jinja/expression_parser.h"
#include "fmt/format.h"

// The operands of operators: literals, names, and what may stand behind them.
namespace everlong::jinja {

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
