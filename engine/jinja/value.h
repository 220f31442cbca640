// Values of the template language: Python's, as far as chat templates can reach them.
//
// A Value is a few words and trivially copied. Texts, lists, dictionaries and objects are borrowed
// from the context, the template or the rendering's Heap, which all outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace everlong::jinja {

// A template that does not parse or fails while it renders; caught at the module's border.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int error_line = 0)
      : std::runtime_error(message), line(error_line) {}

  int line;  // 0: not known yet
};

struct List;
struct Dict;
class Object;

// What a missing name, attribute or element evaluates to. Prints as nothing; most uses fail.
struct Undefined {
  std::string_view name;  // or what else is missing, for the message
};
struct None {};
struct Text {
  std::string_view view;
  bool safe = false;  // Markup: '+' escapes the other side
};

class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, Text, const List*, const Dict*, Object*>;

  Value() : data_(None{}) {}
  // Exactly one of Data's types: nothing converts to bool or to a wider number by accident.
  template <typename T>
  requires(std::is_same_v<T, Undefined> || std::is_same_v<T, bool> || std::is_same_v<T, int64_t> ||
           std::is_same_v<T, double> || std::is_same_v<T, Text>) explicit Value(T data)
      : data_(data) {}
  explicit Value(std::string_view text) : data_(Text{text}) {}
  explicit Value(const List* list) : data_(list) {}
  explicit Value(const Dict* dict) : data_(dict) {}
  explicit Value(Object* object) : data_(object) {}

  // Null unless the value is of that type.
  template <typename T>
  const T* As() const {
    return std::get_if<T>(&data_);
  }
  const std::string_view* text() const {
    const Text* text = As<Text>();
    return text == nullptr ? nullptr : &text->view;
  }
  const List* list() const { return Pointer<const List>(); }
  const Dict* dict() const { return Pointer<const Dict>(); }
  Object* object() const { return Pointer<Object>(); }

  bool is_undefined() const { return As<Undefined>() != nullptr; }
  bool is_none() const { return As<None>() != nullptr; }
  bool is_number() const { return is_whole() || As<double>() != nullptr; }
  // int or bool, which is a kind of int.
  bool is_whole() const { return As<int64_t>() != nullptr || As<bool>() != nullptr; }

  size_t type() const { return data_.index(); }

 private:
  template <typename T>
  T* Pointer() const {
    T* const* pointer = std::get_if<T*>(&data_);
    return pointer == nullptr ? nullptr : *pointer;
  }

  Data data_;
};

// A sequence and what Python makes of it.
enum class Flavor : uint8_t {
  kList,
  kTuple,
  kRange,
  kGenerator,  // no length and no elements by index; empty once iterated over
  kKeys,       // views of a dictionary
  kValues,
  kItems,
};

struct List {
  std::vector<Value> items;
  Flavor flavor = Flavor::kList;
  uint16_t depth = 1;            // levels of lists and dictionaries, this one included
  mutable size_t num_taken = 0;  // elements that a generator has given out
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  uint16_t depth = 1;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;
};

class Heap;

// Whatever has attributes or can be called: functions, macros, loops, namespaces.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view TypeName() const = 0;
  // Undefined where there is no such attribute.
  virtual Value Attribute(Heap& heap, std::string_view name);
  virtual bool IsCallable() const { return false; }
  virtual Value Call(Heap& heap, const Arguments& arguments);
};

bool IsTrue(const Value& value);
// As Python names types.
std::string_view TypeName(const Value& value);

void FailIfUndefined(const Value& value);

// Error where the value is of another type; `what` names it in the message.
int64_t ToInt(const Value& value, std::string_view what);
double ToDouble(const Value& value, std::string_view what);
std::string_view ToText(const Value& value, std::string_view what);

}  // namespace everlong::jinja
