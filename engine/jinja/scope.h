// The variables that a part of a template sees.
#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

// Macros keep the scope alive that they were defined in.
class Scope {
 public:
  explicit Scope(std::shared_ptr<const Scope> outer) : outer_(std::move(outer)) {}

  // Innermost first; null where no scope has the name.
  const Value* Find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer_.get()) {
      const auto it = scope->variables_.find(name);
      if (it != scope->variables_.end()) return &it->second;
    }
    return nullptr;
  }

  bool Has(std::string_view name) const { return variables_.contains(name); }

  // In this scope alone. `name` is borrowed.
  void Set(Heap& heap, std::string_view name, const Value& value) {
    const auto [it, inserted] = variables_.insert_or_assign(name, value);
    if (inserted) heap.Reserve(sizeof(*it));
  }

 private:
  absl::flat_hash_map<std::string_view, Value> variables_;
  const std::shared_ptr<const Scope> outer_;
};

}  // namespace everlong::jinja
