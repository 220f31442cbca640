#include "engine/jinja/builtin.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

using Table = absl::flat_hash_map<std::string_view, const Builtin*>;

const Table& TableOf(std::initializer_list<std::span<const Builtin>> parts) {
  auto* table = new Table();  // lives as long as the process
  for (const auto& part : parts) {
    for (const Builtin& builtin : part) (*table)[builtin.name] = &builtin;
  }
  return *table;
}

const Builtin* Find(const Table& table, std::string_view name) {
  const auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

struct Parameter {
  std::string_view name;
  bool optional;
};

// Builtin::parameters, taken apart.
struct Signature {
  explicit Signature(std::string_view text) {
    while (!text.empty()) {
      const size_t end = std::min(text.find(' '), text.size());
      Add(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  }

  void Add(std::string_view word) {
    if (word == "*") {
      takes_others = true;
    } else if (word == "/") {
      by_position_only = true;
    } else {
      const bool optional = word.back() == '?';
      parameters.push_back({word.substr(0, word.size() - (optional ? 1 : 0)), optional});
    }
  }

  std::vector<Parameter> parameters;
  bool takes_others = false;
  bool by_position_only = false;
};

void TakePositional(const Signature& signature, const Arguments& arguments, Call* call) {
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (i < call->args.size()) {
      call->args[i] = arguments.positional[i];
    } else if (signature.takes_others) {
      call->rest.positional.push_back(arguments.positional[i]);
    } else {
      throw Error(fmt::format("{} takes at most {} arguments, {} were given", call->callee,
                              call->args.size(), arguments.positional.size()));
    }
  }
}

void TakeNamed(const Signature& signature, const Arguments& arguments, Call* call) {
  for (const auto& argument : arguments.named) {
    const auto it = std::find_if(signature.parameters.begin(), signature.parameters.end(),
                                 [&](const Parameter& p) { return p.name == argument.first; });
    if (it != signature.parameters.end() && !signature.by_position_only) {
      auto& slot = call->args[static_cast<size_t>(it - signature.parameters.begin())];
      if (slot) throw Error(fmt::format("{} got two values for '{}'", call->callee, it->name));
      slot = argument.second;
    } else if (signature.takes_others) {
      call->rest.named.push_back(argument);
    } else {
      throw Error(fmt::format("{} takes no argument '{}'", call->callee, argument.first));
    }
  }
}

}  // namespace

int64_t Call::Int(size_t i, int64_t fallback) const {
  return args[i] ? ToInt(*args[i], fmt::format("argument {} of {}", i + 1, callee)) : fallback;
}

std::string_view Call::Text(size_t i, std::string_view fallback) const {
  return args[i] ? ToText(*args[i], fmt::format("argument {} of {}", i + 1, callee)) : fallback;
}

Value Run(Heap& heap, const Builtin& builtin, const Value& self, const Arguments& arguments) {
  heap.Work(1);
  const Signature signature(builtin.parameters);
  Call call{heap, builtin.name, self, {}, {}};
  call.args.resize(signature.parameters.size());
  TakePositional(signature, arguments, &call);
  TakeNamed(signature, arguments, &call);
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (!call.args[i] && !signature.parameters[i].optional) {
      throw Error(
          fmt::format("{} needs the argument '{}'", builtin.name, signature.parameters[i].name));
    }
  }
  return builtin.run(call);
}

const Builtin* FindFilter(std::string_view name) {
  static const Table& table = TableOf({TextFilters(), NumberFilters(), SequenceFilters()});
  return Find(table, name);
}

const Builtin* FindTest(std::string_view name) {
  static const Table& table = TableOf({Tests()});
  return Find(table, name);
}

const Builtin* FindMethod(const Value& self, std::string_view name) {
  static const Table& text = TableOf({TextMethods()});
  static const Table& list = TableOf({SequenceMethods(), ListMethods()});
  static const Table& sequence = TableOf({SequenceMethods()});
  static const Table& dict = TableOf({DictMethods()});
  if (self.text() != nullptr) return Find(text, name);
  if (self.dict() != nullptr) return Find(dict, name);
  if (self.list() == nullptr || self.list()->flavor > Flavor::kRange) return nullptr;
  return Find(self.list()->flavor == Flavor::kList ? list : sequence, name);
}

const Builtin* FindFunction(std::string_view name) {
  static const Table& table = TableOf({Functions()});
  return Find(table, name);
}

}  // namespace everlong::jinja
