// Values of the template language, with Python's rules for truth, equality, order and text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nlohmann/json_fwd.hpp"

namespace everlong::jinja {

// A template that does not parse or fails while rendering. Caught at the module's border.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int error_line = 0)
      : std::runtime_error(message), line(error_line) {}
  int line;  // 0: not known yet
};

class Value;
struct List;
struct Dict;
struct Callable;

// A name or attribute that does not exist: prints as nothing, fails on any other use.
struct Undefined {
  std::string name;
};
struct None {};

// Cheap to copy: lists and dictionaries are shared, and only a namespace is ever changed.
class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>,
                   std::shared_ptr<Dict>, std::shared_ptr<Callable>>;

  Value() : data(None{}) {}
  template <typename T>
  requires std::is_constructible_v<Data, T> Value(T&& d)
      : data(std::forward<T>(d)) {}                     // NOLINT(google-explicit-constructor)
  Value(const char* text) : data(std::string(text)) {}  // NOLINT(google-explicit-constructor)

  template <typename T>
  const T* get() const {
    return std::get_if<T>(&data);
  }
  const List* list() const;
  const Dict* dict() const;
  bool is_undefined() const { return get<Undefined>() != nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  bool is_number() const { return get<int64_t>() || get<double>() || get<bool>(); }

  bool Truth() const;
  // What {{ }} prints, Python's str(). Repr quotes strings.
  std::string Text() const;
  std::string Repr() const;
  const char* TypeName() const;

  Data data;
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
};

struct Dict {
  const Value* Find(const Value& key) const;
  void Set(const Value& key, Value value);

  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  bool is_namespace = false;                   // attributes may be assigned
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // Argument `index`, or the one of that name, or null.
  const Value* Find(size_t index, std::string_view name) const;
};

struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

Value MakeList(std::vector<Value> items, bool tuple = false);
Value MakeDict(std::vector<std::pair<Value, Value>> items);
Value FromJson(const nlohmann::ordered_json& json);

// Python's ==, and < for numbers, strings and lists (Error for other pairs).
bool Equal(const Value& a, const Value& b);
bool Less(const Value& a, const Value& b);
bool Contains(const Value& container, const Value& item);

// Elements of a list, keys of a dictionary, characters of a string; Error for the rest.
std::vector<Value> Iterate(const Value& value);

int64_t ToInt(const Value& value, std::string_view what);
double ToDouble(const Value& value);
const std::string& ToText(const Value& value, std::string_view what);

std::vector<std::string> Characters(std::string_view utf8);

// Python's json.dumps(value, ensure_ascii=False); indent < 0: on one line.
std::string ToJson(const Value& value, int indent, bool sort_keys, std::string_view item_separator,
                   std::string_view key_separator);

}  // namespace everlong::jinja
