#include "engine/jinja/value.h"

#include "fmt/format.h"

namespace everlong::jinja {
namespace {

[[noreturn]] void FailType(const Value& value, std::string_view what, std::string_view type) {
  FailIfUndefined(value);
  throw Error(fmt::format("{} must be {}, not {}", what, type, TypeName(value)));
}

std::string_view FlavorName(Flavor flavor) {
  constexpr std::string_view kNames[] = {"list",      "tuple",       "range",     "generator",
                                         "dict_keys", "dict_values", "dict_items"};
  return kNames[static_cast<size_t>(flavor)];
}

}  // namespace

Value Object::Attribute(Heap&, std::string_view name) {
  return Value(Undefined{name});
}

Value Object::Call(Heap&, const Arguments&) {
  throw Error(fmt::format("{} cannot be called", TypeName()));
}

void FailIfUndefined(const Value& value) {
  if (const Undefined* undefined = value.As<Undefined>()) {
    throw Error(fmt::format("{} is undefined", undefined->name));
  }
}

bool IsTrue(const Value& value) {
  if (const bool* flag = value.As<bool>()) return *flag;
  if (const int64_t* number = value.As<int64_t>()) return *number != 0;
  if (const double* number = value.As<double>()) return *number != 0.0;
  if (const std::string_view* text = value.text()) return !text->empty();
  if (const List* list = value.list()) {
    return list->flavor == Flavor::kGenerator || !list->items.empty();
  }
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  return value.object() != nullptr;
}

std::string_view TypeName(const Value& value) {
  if (const List* list = value.list()) return FlavorName(list->flavor);
  if (const Object* object = value.object()) return object->TypeName();
  constexpr std::string_view kNames[] = {"Undefined", "NoneType", "bool", "int",   "float",
                                         "str",       "list",     "dict", "object"};
  return kNames[value.type()];
}

int64_t ToInt(const Value& value, std::string_view what) {
  if (const int64_t* number = value.As<int64_t>()) return *number;
  if (const bool* flag = value.As<bool>()) return *flag ? 1 : 0;
  FailType(value, what, "an integer");
}

double ToDouble(const Value& value, std::string_view what) {
  if (const double* number = value.As<double>()) return *number;
  if (value.is_whole()) return static_cast<double>(ToInt(value, what));
  FailType(value, what, "a number");
}

std::string_view ToText(const Value& value, std::string_view what) {
  if (const std::string_view* text = value.text()) return *text;
  FailType(value, what, "a string");
}

}  // namespace everlong::jinja
