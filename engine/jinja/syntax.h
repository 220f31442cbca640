// Template source to a tree. The dialect is what transformers sets up: trim_blocks, lstrip_blocks,
// break and continue, and {% generation %} blocks, which render as their body.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/value.h"

namespace everlong::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kLiteral,      // value
  kName,         // name
  kList,         // operands
  kTuple,        // operands
  kDict,         // operands: key, value, key, value ...
  kAttribute,    // operands[0].name
  kIndex,        // operands[0][operands[1]]
  kSlice,        // operands[0][1:2:3], absent parts null
  kCall,         // operands[0](operands[1..], named)
  kFilter,       // operands[0] | name(operands[1..], named)
  kTest,         // operands[0] is name(operands[1..])
  kUnary,        // name: not - +
  kBinary,       // name: and or + - * / // % ** ~ == != < <= > >= in
  kConditional,  // operands[0] if operands[1] else operands[2] (may be null)
};

struct Expr {
  ExprKind kind;
  int line;
  std::string name;
  Value value;
  std::vector<ExprPtr> operands;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Node;
using Body = std::vector<Node>;

enum class NodeKind {
  kText,      // name
  kOutput,    // expr
  kIf,        // expr, body, otherwise
  kFor,       // targets in expr [if condition]: body, otherwise
  kSet,       // targets = expr, or name.targets[0] = expr
  kSetBlock,  // targets[0] = body [| expr, a filter chain over kName "body"]
  kMacro,     // name(parameters): body
  kCall,      // expr (a call) with body as caller(parameters)
  kFilter,    // expr, a filter chain over kName "body": body
  kWith,      // parameters, body
  kBreak,
  kContinue,
};

struct Node {
  NodeKind kind;
  int line;
  std::string name;
  std::vector<std::string> targets;
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // name, default or null
  ExprPtr expr;
  ExprPtr condition;
  Body body;
  Body otherwise;
};

// Throws Error with the line.
Body ParseTemplate(std::string_view source);

}  // namespace everlong::jinja
