// The tree of a template.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/arithmetic.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

enum class ExprKind : uint8_t {
  kLiteral,      // value
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value ...
  kAttribute,    // operands[0].name
  kItem,         // operands[0][operands[1]]
  kSlice,        // operands[0][operands[1]:operands[2]:operands[3]], absent ones null
  kCall,         // operands[0](arguments)
  kFilter,       // operands[0] | name(arguments), a null operand being a block's body
  kTest,         // operands[0] is name(arguments)
  kNot,          // not operands[0]
  kNegate,       // -operands[0]
  kPlus,         // +operands[0]
  kAnd,          // operands[0] and operands[1]
  kOr,           // operands[0] or operands[1]
  kArithmetic,   // operands[0] arithmetic operands[1]
  kConcat,       // operands[0] ~ operands[1] ~ ...
  kCompare,      // operands[0] comparisons[0] operands[1] comparisons[1] operands[2] ...
  kConditional,  // operands[0] if operands[1] else operands[2], which may be null
};

enum class Comparison : uint8_t {
  kEqual,
  kNotEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kIn,
  kNotIn,
};

struct Expr;

// An argument of a call: by position where it has no name. "*" and "**" spread a sequence or a
// dictionary.
struct Argument {
  std::string name;
  const Expr* value;
};

struct Expr {
  ExprKind kind;
  int line;
  std::string name;
  Value value;
  std::vector<const Expr*> operands;
  std::vector<Argument> arguments;
  std::vector<Comparison> comparisons;
  Arithmetic arithmetic{};
  const Builtin* builtin = nullptr;  // of a filter or test; null where there is none of its name
};

enum class NodeKind : uint8_t {
  kText,        // name
  kOutput,      // expr
  kIf,          // body: kBranch nodes, of which the first runs whose condition holds
  kBranch,      // [condition] body
  kFor,         // for target in expr [if condition]: body, else otherwise
  kSet,         // target = expr
  kSetBlock,    // target = body [| expr, a chain of filters]
  kMacro,       // name(parameters): body
  kCall,        // expr, a call with body as its caller(parameters)
  kFilter,      // body | expr, a chain of filters
  kWith,        // parameters = values: body
  kGeneration,  // body
  kBreak,
  kContinue,
};

struct Parameter {
  std::string name;
  const Expr* value;  // default; null: none
};

struct Node {
  NodeKind kind;
  int line;
  std::string name;
  std::vector<Parameter> parameters;
  const Expr* target = nullptr;  // kName, kTuple of targets, or kAttribute of a namespace
  const Expr* expr = nullptr;
  const Expr* condition = nullptr;
  std::vector<Node> body;
  std::vector<Node> otherwise;
  // Names that a macro's body mentions and its callers may therefore pass values for.
  bool takes_caller = false;
  bool takes_varargs = false;
  bool takes_kwargs = false;
};

// Immovable once parsed: expressions refer to each other and values to their texts.
struct Program {
  std::deque<Expr> expressions;
  std::vector<Node> body;
};

}  // namespace everlong::jinja
