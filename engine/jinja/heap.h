// Storage and limits of one rendering.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/jinja/value.h"
#include "nlohmann/json_fwd.hpp"

namespace everlong::jinja {

struct Limits {
  // Evaluations of an expression or statement, elements visited, 64-byte blocks of text scanned.
  size_t steps = 20'000'000;
  // Everything that a rendering makes, its output included; nothing is freed before it ends.
  size_t bytes = size_t{256} << 20;
  // Expressions, statements and macro calls that are inside each other.
  int nesting = 1000;
};

// Owns what values refer to, so that values can be copied freely and cycles do no harm. Each
// operation charges its work before it does it. Not thread-safe.
class Heap {
 public:
  // Lists and dictionaries inside each other.
  static constexpr int kMaxDepth = 128;

  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // Error past the limit.
  void Work(size_t steps);
  void Scan(std::string_view text) { Work(text.size() / 64 + 1); }
  // A search that may compare `sought` at each byte.
  void Search(std::string_view text, std::string_view sought) {
    Scan(text);
    Work(text.size() / 32 * (sought.size() / 32));
  }
  void Reserve(size_t bytes);
  void Enter();
  void Leave() { --nesting_; }

  Value NewText(std::string text);
  Value NewDict(std::vector<std::pair<Value, Value>> items);
  template <typename T, typename... Args>
  T* New(Args&&... args) {
    Reserve(sizeof(T) + kObjectOverhead);
    auto object = std::make_unique<T>(std::forward<Args>(args)...);
    T* borrowed = object.get();
    objects_.push_back(std::move(object));
    return borrowed;
  }

  // `json` is borrowed: texts are not copied.
  Value FromJson(const nlohmann::ordered_json& json);

 private:
  friend class ListBuilder;
  friend class TextBuilder;
  static constexpr size_t kObjectOverhead = 64;

  Value FromJson(const nlohmann::ordered_json& json, int depth);
  Value BorrowText(std::string_view text);
  Value Keep(std::string text);

  const Limits limits_;
  size_t steps_ = 0;
  size_t bytes_ = 0;
  int nesting_ = 0;
  std::deque<std::string> texts_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::vector<std::unique_ptr<Object>> objects_;
};

// Holds one level of nesting.
class Nesting {
 public:
  explicit Nesting(Heap& heap) : heap_(heap) { heap_.Enter(); }
  ~Nesting() { heap_.Leave(); }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Heap& heap_;
};

// Text that is charged as it grows.
class TextBuilder {
 public:
  explicit TextBuilder(Heap& heap) : heap_(heap) {}
  void Append(std::string_view text);
  void Append(size_t count, char c);
  Value Finish();
  std::string Take() { return std::move(text_); }

 private:
  Heap& heap_;
  std::string text_;
};

// A list that is charged as it grows.
class ListBuilder {
 public:
  explicit ListBuilder(Heap& heap) : heap_(heap) {}
  void Add(const Value& value);
  size_t size() const { return items_.size(); }
  Value Finish(Flavor flavor = Flavor::kList);

 private:
  Heap& heap_;
  std::vector<Value> items_;
};

}  // namespace everlong::jinja
