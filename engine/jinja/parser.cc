#include "engine/jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "engine/jinja/expression_parser.h"
#include "engine/jinja/token_stream.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(std::string_view source, Program* program)
      : tokens_(Lex(source)), expressions_(&tokens_, &program->expressions) {}

  std::vector<Node> ParseAll() { return ParseBody({}); }

 private:
  // Nodes up to a tag that one of `ends` begins, which becomes the current token, or to the end of
  // the template where there are no ends.
  std::vector<Node> ParseBody(Names ends) {
    const Depth depth(&tokens_);
    std::vector<Node> body;
    while (true) {
      const Token& token = tokens_.Next();
      if (token.kind == TokenKind::kText) {
        body.push_back({.kind = NodeKind::kText, .line = token.line, .name = token.text});
      } else if (token.kind == TokenKind::kOutputBegin) {
        body.push_back({.kind = NodeKind::kOutput, .line = token.line});
        body.back().expr = expressions_.ParseTuple();
        tokens_.Expect(TokenKind::kOutputEnd, "}}");
      } else if (token.kind == TokenKind::kBlockBegin) {
        if (tokens_.AtAnyName(ends)) return body;
        body.push_back(ParseStatement());
        tokens_.Expect(TokenKind::kBlockEnd, "%}");
      } else {
        if (ends.size() > 0)
          tokens_.Fail(fmt::format("the tag '{}' is missing", *(ends.end() - 1)));
        return body;  // at the end of the template
      }
    }
  }

  // The rest of an opening tag and its body, up to the name of the tag that ends it.
  std::vector<Node> ParseBlock(Names ends) {
    tokens_.TakeOperator(":");
    tokens_.Expect(TokenKind::kBlockEnd, "%}");
    return ParseBody(ends);
  }

  std::vector<Node> ParseBlockAndEnd(std::string_view end) {
    std::vector<Node> body = ParseBlock({end});
    tokens_.Next();
    return body;
  }

  Node ParseStatement() {
    using ParseFunction = void (Parser::*)(Node*);
    struct Tag {
      std::string_view name;
      NodeKind kind;
      ParseFunction parse;
    };
    static constexpr Tag kTags[] = {
        {"break", NodeKind::kBreak, &Parser::ParseLoopControl},
        {"call", NodeKind::kCall, &Parser::ParseCall},
        {"continue", NodeKind::kContinue, &Parser::ParseLoopControl},
        {"filter", NodeKind::kFilter, &Parser::ParseFilter},
        {"for", NodeKind::kFor, &Parser::ParseFor},
        {"generation", NodeKind::kGeneration, &Parser::ParseGeneration},
        {"if", NodeKind::kIf, &Parser::ParseIf},
        {"macro", NodeKind::kMacro, &Parser::ParseMacro},
        {"set", NodeKind::kSet, &Parser::ParseSet},
        {"with", NodeKind::kWith, &Parser::ParseWith},
    };
    const Token& name = tokens_.Expect(TokenKind::kName, "the name of a tag");
    const auto* tag = std::find_if(std::begin(kTags), std::end(kTags),
                                   [&](const Tag& t) { return t.name == name.text; });
    if (tag == std::end(kTags)) {
      throw Error(fmt::format("the tag '{}' is unknown or out of place", name.text), name.line);
    }
    Node node{.kind = tag->kind, .line = name.line};
    (this->*tag->parse)(&node);
    return node;
  }

  void ParseLoopControl(Node* node) {
    if (num_loops_ == 0) throw Error("break or continue outside of a loop", node->line);
  }

  void ParseIf(Node* node) {
    do {
      Node branch{.kind = NodeKind::kBranch, .line = tokens_.line()};
      branch.condition = expressions_.ParseTuple(/*conditional=*/false);
      branch.body = ParseBlock({"elif", "else", "endif"});
      node->body.push_back(std::move(branch));
    } while (tokens_.TakeName("elif"));
    if (tokens_.TakeName("else")) {
      node->body.push_back({.kind = NodeKind::kBranch, .line = tokens_.line()});
      node->body.back().body = ParseBlock({"endif"});
    }
    tokens_.Next();
  }

  void ParseFor(Node* node) {
    node->target = expressions_.ParseTarget(/*namespaces=*/false);
    tokens_.ExpectName("in");
    node->expr = expressions_.ParseTuple(/*conditional=*/false);
    if (tokens_.TakeName("if")) node->condition = expressions_.ParseExpression();
    if (tokens_.AtName("recursive")) tokens_.Fail("recursive loops are not supported");
    ++num_loops_;
    node->body = ParseBlock({"else", "endfor"});
    --num_loops_;
    if (tokens_.TakeName("else")) node->otherwise = ParseBlock({"endfor"});
    tokens_.Next();
    FailIfLoopIsSet(*node);
  }

  // A loop's variable `loop` cannot be assigned to anywhere inside it.
  static void FailIfLoopIsSet(const Node& node) {
    if (node.target != nullptr && Assigns(*node.target, "loop")) {
      throw Error("'loop' is set inside a loop", node.line);
    }
    for (const Node& inner : node.body) FailIfLoopIsSet(inner);
    for (const Node& inner : node.otherwise) FailIfLoopIsSet(inner);
  }

  static bool Assigns(const Expr& target, std::string_view name) {
    if (target.kind == ExprKind::kName) return target.name == name;
    return target.kind == ExprKind::kTuple &&
           std::any_of(target.operands.begin(), target.operands.end(),
                       [&](const Expr* part) { return Assigns(*part, name); });
  }

  void ParseSet(Node* node) {
    node->target = expressions_.ParseTarget(/*namespaces=*/true);
    if (tokens_.TakeOperator("=")) {
      node->expr = expressions_.ParseTuple();
      return;
    }
    node->kind = NodeKind::kSetBlock;
    node->expr = expressions_.ParseFilters(nullptr);
    node->body = ParseBlockAndEnd("endset");
  }

  void ParseMacro(Node* node) {
    node->name = expressions_.ParseTargetName();
    ParseParameters(node);
    ParseMacroBody(node, "endmacro");
  }

  void ParseCall(Node* node) {
    if (tokens_.AtOperator("(")) ParseParameters(node);
    node->name = "caller";
    node->expr = expressions_.ParseExpression();
    if (node->expr->kind != ExprKind::kCall) throw Error("'call' needs a call", node->line);
    ParseMacroBody(node, "endcall");
  }

  void ParseParameters(Node* node) {
    tokens_.ExpectOperator("(");
    while (!tokens_.TakeOperator(")")) {
      if (!node->parameters.empty()) tokens_.ExpectOperator(",");
      Parameter parameter{expressions_.ParseTargetName(), nullptr};
      if (tokens_.TakeOperator("=")) {
        parameter.value = expressions_.ParseExpression();
      } else if (!node->parameters.empty() && node->parameters.back().value != nullptr) {
        tokens_.Fail("a parameter without a default follows one with a default");
      }
      for (const Parameter& other : node->parameters) {
        if (other.name == parameter.name) tokens_.Fail("two parameters have the same name");
      }
      node->parameters.push_back(std::move(parameter));
    }
  }

  // The body is a function of its own: loops around it cannot be left from inside.
  void ParseMacroBody(Node* node, std::string_view end) {
    const int num_loops = std::exchange(num_loops_, 0);
    const SpecialNames outer = expressions_.TakeSpecialNames();
    node->body = ParseBlockAndEnd(end);
    const SpecialNames inner = expressions_.TakeSpecialNames();
    node->takes_caller = inner.caller;
    node->takes_varargs = inner.varargs;
    node->takes_kwargs = inner.kwargs;
    expressions_.AddSpecialNames(outer);
    expressions_.AddSpecialNames(inner);
    num_loops_ = num_loops;
  }

  void ParseGeneration(Node* node) {
    const int num_loops = std::exchange(num_loops_, 0);
    node->body = ParseBlockAndEnd("endgeneration");
    num_loops_ = num_loops;
  }

  void ParseFilter(Node* node) {
    node->expr = expressions_.ParseFilter(nullptr);
    node->expr = expressions_.ParseFilters(node->expr);
    node->body = ParseBlockAndEnd("endfilter");
  }

  void ParseWith(Node* node) {
    while (!tokens_.At(TokenKind::kBlockEnd)) {
      if (!node->parameters.empty()) tokens_.ExpectOperator(",");
      Parameter parameter{expressions_.ParseTargetName(), nullptr};
      tokens_.ExpectOperator("=");
      parameter.value = expressions_.ParseExpression();
      node->parameters.push_back(std::move(parameter));
    }
    node->body = ParseBlockAndEnd("endwith");
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int num_loops_ = 0;  // around the current tag, in the current macro
};

}  // namespace

std::unique_ptr<const Program> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    throw Error(fmt::format("the template has {} bytes, the limit is {}", source.size(),
                            kMaxTemplateBytes));
  }
  auto program = std::make_unique<Program>();
  program->body = Parser(source, program.get()).ParseAll();
  return program;
}

}  // namespace everlong::jinja
