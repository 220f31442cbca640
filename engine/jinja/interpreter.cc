#include "engine/jinja/interpreter.h"

#include <algorithm>
#include <memory>

#include "engine/jinja/compare.h"
#include "engine/jinja/evaluator.h"
#include "engine/jinja/objects.h"
#include "engine/jinja/print.h"
#include "engine/jinja/scope.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace everlong::jinja {
namespace {

// Whether a body ran to its end.
enum class Flow { kEnd, kBreak, kContinue };

using ScopePtr = std::shared_ptr<Scope>;

class Interpreter {
 public:
  explicit Interpreter(Heap& heap) : heap_(heap), evaluator_(heap) {}

  Flow Run(const std::vector<Node>& body, const ScopePtr& scope, TextBuilder* out) {
    for (const Node& node : body) {
      if (const Flow flow = Run(node, scope, out); flow != Flow::kEnd) return flow;
    }
    return Flow::kEnd;
  }

  Value CallMacro(const Node& macro, const ScopePtr& closure, const Arguments& arguments);

 private:
  Flow Run(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    const Nesting nesting(heap_);
    heap_.Work(1);
    try {
      return Dispatch(node, scope, out);
    } catch (Error& error) {
      if (error.line == 0) error.line = node.line;
      throw;
    }
  }

  Flow Dispatch(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    switch (node.kind) {
      case NodeKind::kText:
        out->Append(node.name);
        return Flow::kEnd;
      case NodeKind::kOutput:
        Print(heap_, evaluator_.Evaluate(*node.expr, *scope), out);
        return Flow::kEnd;
      case NodeKind::kIf:
        return RunIf(node, scope, out);
      case NodeKind::kBranch:
        return Run(node.body, scope, out);
      case NodeKind::kFor:
        return RunFor(node, scope, out);
      case NodeKind::kSet:
        Assign(*node.target, evaluator_.Evaluate(*node.expr, *scope), scope.get());
        return Flow::kEnd;
      case NodeKind::kSetBlock:
        return RunSetBlock(node, scope);
      case NodeKind::kMacro:
        scope->Set(heap_, node.name, MakeMacro(node, scope));
        return Flow::kEnd;
      case NodeKind::kCall:
        Print(heap_, evaluator_.CallWith(*node.expr, *scope, MakeMacro(node, scope)), out);
        return Flow::kEnd;
      case NodeKind::kFilter:
        return RunFilter(node, scope, out);
      case NodeKind::kWith:
        return RunWith(node, scope, out);
      case NodeKind::kGeneration:
        return Run(node.body, std::make_shared<Scope>(scope), out);
      case NodeKind::kBreak:
        return Flow::kBreak;
      case NodeKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kEnd;
  }

  bool Holds(const Expr* condition, const Scope& scope) {
    return condition == nullptr || IsTrue(evaluator_.Evaluate(*condition, scope));
  }

  Flow RunIf(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    for (const Node& branch : node.body) {
      if (Holds(branch.condition, *scope)) return Run(branch, scope, out);
    }
    return Flow::kEnd;
  }

  // The elements that a loop visits. A filter sees the target but not the loop.
  std::span<const Value> LoopItems(const Node& node, const ScopePtr& scope) {
    const std::span<const Value> items = Elements(heap_, evaluator_.Evaluate(*node.expr, *scope));
    if (node.condition == nullptr) return items;
    ListBuilder kept(heap_);
    for (const Value& item : items) {
      Scope inner(scope);
      Assign(*node.target, item, &inner);
      if (Holds(node.condition, inner)) kept.Add(item);
    }
    return kept.Finish().list()->items;
  }

  Flow RunFor(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    const std::span<const Value> items = LoopItems(node, scope);
    if (items.empty()) return Run(node.otherwise, std::make_shared<Scope>(scope), out);
    Loop* loop = heap_.New<Loop>(items);
    for (size_t i = 0; i < items.size(); ++i) {
      heap_.Work(1);
      loop->MoveTo(i);
      const auto inner = std::make_shared<Scope>(scope);
      inner->Set(heap_, "loop", Value(loop));
      Assign(*node.target, items[i], inner.get());
      if (Run(node.body, inner, out) == Flow::kBreak) break;
    }
    return Flow::kEnd;
  }

  Value Capture(const std::vector<Node>& body, const ScopePtr& scope, Flow* flow) {
    TextBuilder text(heap_);
    *flow = Run(body, std::make_shared<Scope>(scope), &text);
    return text.Finish();
  }

  Flow RunSetBlock(const Node& node, const ScopePtr& scope) {
    Flow flow = Flow::kEnd;
    Value text = Capture(node.body, scope, &flow);
    if (flow != Flow::kEnd) return flow;
    if (node.expr != nullptr) text = evaluator_.Filter(*node.expr, *scope, text);
    Assign(*node.target, text, scope.get());
    return flow;
  }

  Flow RunFilter(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    Flow flow = Flow::kEnd;
    const Value text = Capture(node.body, scope, &flow);
    if (flow == Flow::kEnd) Print(heap_, evaluator_.Filter(*node.expr, *scope, text), out);
    return flow;
  }

  Flow RunWith(const Node& node, const ScopePtr& scope, TextBuilder* out) {
    const auto inner = std::make_shared<Scope>(scope);
    for (const Parameter& variable : node.parameters) {
      inner->Set(heap_, variable.name, evaluator_.Evaluate(*variable.value, *scope));
    }
    return Run(node.body, inner, out);
  }

  void Assign(const Expr& target, const Value& value, Scope* scope) {
    if (target.kind == ExprKind::kName) {
      scope->Set(heap_, target.name, value);
    } else if (target.kind == ExprKind::kTuple) {
      Unpack(target, value, scope);
    } else {
      const Value holder = evaluator_.Evaluate(*target.operands[0], *scope);
      auto* attributes = dynamic_cast<Namespace*>(holder.object());
      if (attributes == nullptr) {
        throw Error(fmt::format("only a namespace's attributes can be set, not those of a {}",
                                TypeName(holder)),
                    target.line);
      }
      attributes->Set(heap_, target.name, value);
    }
  }

  void Unpack(const Expr& target, const Value& value, Scope* scope) {
    const std::span<const Value> items = Elements(heap_, value);
    if (items.size() != target.operands.size()) {
      throw Error(fmt::format("{} values cannot be unpacked into {} names", items.size(),
                              target.operands.size()),
                  target.line);
    }
    for (size_t i = 0; i < items.size(); ++i) Assign(*target.operands[i], items[i], scope);
  }

  Value MakeMacro(const Node& node, const ScopePtr& scope);
  void Bind(const Node& macro, const Arguments& arguments, Scope* scope);
  void BindRest(const Node& macro, const Arguments& arguments, std::vector<bool> taken,
                Scope* scope);

  Heap& heap_;
  Evaluator evaluator_;
};

// A macro sees the variables around its definition as they are when it is called.
class Macro : public Object {
 public:
  Macro(Interpreter& interpreter, const Node& node, ScopePtr closure)
      : interpreter_(interpreter), node_(node), closure_(std::move(closure)) {}
  std::string_view TypeName() const override { return "macro"; }
  bool IsCallable() const override { return true; }
  Value Attribute(Heap& heap, std::string_view name) override {
    return name == "name" ? Value(std::string_view{node_.name}) : Object::Attribute(heap, name);
  }
  Value Call(Heap&, const Arguments& arguments) override {
    return interpreter_.CallMacro(node_, closure_, arguments);
  }

 private:
  Interpreter& interpreter_;
  const Node& node_;
  const ScopePtr closure_;
};

Value Interpreter::MakeMacro(const Node& node, const ScopePtr& scope) {
  return Value(heap_.New<Macro>(*this, node, scope));
}

Value Interpreter::CallMacro(const Node& macro, const ScopePtr& closure,
                             const Arguments& arguments) {
  const auto scope = std::make_shared<Scope>(closure);
  Bind(macro, arguments, scope.get());
  TextBuilder text(heap_);
  Run(macro.body, scope, &text);
  return text.Finish();
}

// Sets the parameters, by position, by name or to their defaults, which see those before them.
void Interpreter::Bind(const Node& macro, const Arguments& arguments, Scope* scope) {
  std::vector<bool> taken(arguments.named.size());
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    const auto named = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& a) { return a.first == parameter.name; });
    if (i < arguments.positional.size()) {
      scope->Set(heap_, parameter.name, arguments.positional[i]);
    } else if (named != arguments.named.end()) {
      taken[static_cast<size_t>(named - arguments.named.begin())] = true;
      scope->Set(heap_, parameter.name, named->second);
    } else if (parameter.value != nullptr) {
      scope->Set(heap_, parameter.name, evaluator_.Evaluate(*parameter.value, *scope));
    } else {
      scope->Set(heap_, parameter.name, Value(Undefined{parameter.name}));
    }
  }
  BindRest(macro, arguments, std::move(taken), scope);
}

// Sets caller, kwargs and varargs, as far as the macro mentions them, to what no parameter took.
void Interpreter::BindRest(const Node& macro, const Arguments& arguments, std::vector<bool> taken,
                           Scope* scope) {
  const bool has_caller = scope->Has("caller");  // as a parameter
  if (macro.takes_caller && !has_caller) scope->Set(heap_, "caller", Value(Undefined{"caller"}));
  std::vector<std::pair<Value, Value>> kwargs;
  for (size_t i = 0; i < arguments.named.size(); ++i) {
    const auto& [name, value] = arguments.named[i];
    if (taken[i]) continue;
    if (macro.takes_caller && !has_caller && name == "caller") {
      scope->Set(heap_, "caller", value);
    } else if (macro.takes_kwargs) {
      SetItem(heap_, Value(name), value, &kwargs);
    } else {
      throw Error(fmt::format("the macro {} takes no argument '{}'", macro.name, name));
    }
  }
  if (macro.takes_kwargs) scope->Set(heap_, "kwargs", heap_.NewDict(std::move(kwargs)));
  const size_t num_parameters = macro.parameters.size();
  ListBuilder varargs(heap_);
  for (size_t i = num_parameters; i < arguments.positional.size(); ++i) {
    if (!macro.takes_varargs) {
      throw Error(fmt::format("the macro {} takes at most {} arguments, {} were given", macro.name,
                              num_parameters, arguments.positional.size()));
    }
    varargs.Add(arguments.positional[i]);
  }
  if (macro.takes_varargs) scope->Set(heap_, "varargs", varargs.Finish(Flavor::kTuple));
}

}  // namespace

std::string Render(const Program& program, const nlohmann::ordered_json& context,
                   const Limits& limits) {
  if (!context.is_object()) throw Error("the context is no object");
  Heap heap(limits);
  const auto globals = std::make_shared<Scope>(nullptr);
  for (const auto& [name, value] : context.get_ref<const nlohmann::ordered_json::object_t&>()) {
    globals->Set(heap, name, heap.FromJson(value));
  }
  TextBuilder out(heap);
  Interpreter(heap).Run(program.body, std::make_shared<Scope>(globals), &out);
  return out.Take();
}

}  // namespace everlong::jinja
