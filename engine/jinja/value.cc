#include "engine/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace everlong::jinja {
namespace {

constexpr int kMaxDepth = 100;

// Python's repr of a float: shortest digits that read back, exponents outside 1e-4 .. 1e16.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double magnitude = std::abs(value);
  char buffer[64];
  if (magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16)) {
    const auto end =
        std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
    return {buffer, end.ptr};
  }
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string text(buffer, end.ptr);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string QuotedText(const std::string& text) {
  const bool single = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = single ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\' || c == quote) {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + quote;
}

void AppendRepr(const Value& value, int depth, std::string& out) {
  if (depth > kMaxDepth) throw Error("a value is nested too deeply to print");
  if (const auto* text = value.get<std::string>()) {
    out += QuotedText(*text);
  } else if (const List* list = value.list()) {
    out += list->tuple ? '(' : '[';
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      AppendRepr(list->items[i], depth + 1, out);
    }
    if (list->tuple && list->items.size() == 1) out += ',';
    out += list->tuple ? ')' : ']';
  } else if (const Dict* dict = value.dict()) {
    out += '{';
    for (size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out += ", ";
      AppendRepr(dict->items[i].first, depth + 1, out);
      out += ": ";
      AppendRepr(dict->items[i].second, depth + 1, out);
    }
    out += '}';
  } else {
    out += value.Text();
  }
}

void AppendJsonString(const std::string& text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

struct JsonWriter {
  int indent;
  bool sort_keys;
  std::string_view item_separator;
  std::string_view key_separator;
  std::string out;

  void NewLine(int depth) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent) * depth, ' ');
  }

  void WriteList(const List& list, int depth) {
    out += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out += item_separator;
      NewLine(depth + 1);
      Write(list.items[i], depth + 1);
    }
    if (!list.items.empty()) NewLine(depth);
    out += ']';
  }

  void WriteDict(const Dict& dict, int depth) {
    std::vector<std::pair<Value, Value>> items = dict.items;
    if (sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return Less(a.first, b.first); });
    }
    out += '{';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += item_separator;
      NewLine(depth + 1);
      const auto* key = items[i].first.get<std::string>();
      if (key != nullptr) {
        AppendJsonString(*key, out);
      } else {
        out += '"';
        Write(items[i].first, depth + 1);
        out += '"';
      }
      out += key_separator;
      Write(items[i].second, depth + 1);
    }
    if (!items.empty()) NewLine(depth);
    out += '}';
  }

  void Write(const Value& value, int depth) {
    if (depth > kMaxDepth) throw Error("tojson: a value is nested too deeply");
    if (const auto* text = value.get<std::string>()) {
      AppendJsonString(*text, out);
    } else if (const auto* flag = value.get<bool>()) {
      out += *flag ? "true" : "false";
    } else if (const auto* number = value.get<double>(); number && !std::isfinite(*number)) {
      out += std::isnan(*number) ? "NaN" : *number > 0 ? "Infinity" : "-Infinity";
    } else if (value.is_number()) {
      out += value.Text();
    } else if (value.is_none()) {
      out += "null";
    } else if (value.list() != nullptr) {
      WriteList(*value.list(), depth);
    } else if (value.dict() != nullptr) {
      WriteDict(*value.dict(), depth);
    } else {
      throw Error(fmt::format("tojson: {} cannot be written as JSON", value.TypeName()));
    }
  }
};

}  // namespace

const List* Value::list() const {
  const auto* list = get<std::shared_ptr<List>>();
  return list == nullptr ? nullptr : list->get();
}

const Dict* Value::dict() const {
  const auto* dict = get<std::shared_ptr<Dict>>();
  return dict == nullptr ? nullptr : dict->get();
}

bool Value::Truth() const {
  if (is_undefined() || is_none()) return false;
  if (const auto* flag = get<bool>()) return *flag;
  if (const auto* number = get<int64_t>()) return *number != 0;
  if (const auto* number = get<double>()) return *number != 0.0;
  if (const auto* text = get<std::string>()) return !text->empty();
  if (list() != nullptr) return !list()->items.empty();
  if (dict() != nullptr) return dict()->is_namespace || !dict()->items.empty();
  return true;
}

std::string Value::Text() const {
  if (is_undefined()) return "";
  if (is_none()) return "None";
  if (const auto* flag = get<bool>()) return *flag ? "True" : "False";
  if (const auto* number = get<int64_t>()) return std::to_string(*number);
  if (const auto* number = get<double>()) return FloatText(*number);
  if (const auto* text = get<std::string>()) return *text;
  if (const auto* callable = get<std::shared_ptr<Callable>>()) {
    return fmt::format("<function {}>", (*callable)->name);
  }
  return Repr();
}

std::string Value::Repr() const {
  std::string out;
  AppendRepr(*this, 0, out);
  return out;
}

const char* Value::TypeName() const {
  constexpr const char* kNames[] = {"undefined", "None", "bool", "int",     "float",
                                    "str",       "list", "dict", "function"};
  return kNames[data.index()];
}

const Value* Dict::Find(const Value& key) const {
  for (const auto& item : items) {
    if (Equal(item.first, key)) return &item.second;
  }
  return nullptr;
}

void Dict::Set(const Value& key, Value value) {
  for (auto& item : items) {
    if (!Equal(item.first, key)) continue;
    item.second = std::move(value);
    return;
  }
  items.emplace_back(key, std::move(value));
}

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& argument : named) {
    if (argument.first == name) return &argument.second;
  }
  return nullptr;
}

Value MakeList(std::vector<Value> items, bool tuple) {
  return std::make_shared<List>(List{std::move(items), tuple});
}

Value MakeDict(std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  dict->items = std::move(items);
  return dict;
}

Value FromJson(const nlohmann::ordered_json& json) {
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::boolean:
      return json.get<bool>();
    case Type::number_integer:
    case Type::number_unsigned:
      return json.get<int64_t>();
    case Type::number_float:
      return json.get<double>();
    case Type::string:
      return json.get<std::string>();
    case Type::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(FromJson(item));
      return MakeList(std::move(items));
    }
    case Type::object: {
      auto dict = std::make_shared<Dict>();
      for (const auto& [key, item] : json.items()) dict->items.emplace_back(key, FromJson(item));
      return dict;
    }
    default:
      return None{};
  }
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const auto* x = a.get<int64_t>();
    const auto* y = b.get<int64_t>();
    return x && y ? *x == *y : ToDouble(a) == ToDouble(b);
  }
  if (a.data.index() != b.data.index()) return false;
  if (const auto* text = a.get<std::string>()) return *text == *b.get<std::string>();
  if (a.list() != nullptr) {
    return a.list()->tuple == b.list()->tuple &&
           std::equal(a.list()->items.begin(), a.list()->items.end(), b.list()->items.begin(),
                      b.list()->items.end(), Equal);
  }
  if (a.dict() != nullptr) {
    if (a.dict()->items.size() != b.dict()->items.size()) return false;
    return std::all_of(a.dict()->items.begin(), a.dict()->items.end(), [&](const auto& item) {
      const Value* other = b.dict()->Find(item.first);
      return other != nullptr && Equal(item.second, *other);
    });
  }
  if (const auto* callable = a.get<std::shared_ptr<Callable>>()) {
    return *callable == *b.get<std::shared_ptr<Callable>>();
  }
  return true;
}

bool Less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const auto* x = a.get<int64_t>();
    const auto* y = b.get<int64_t>();
    return x && y ? *x < *y : ToDouble(a) < ToDouble(b);
  }
  const auto* x = a.get<std::string>();
  const auto* y = b.get<std::string>();
  if (x != nullptr && y != nullptr) return *x < *y;
  if (a.list() != nullptr && b.list() != nullptr) {
    return std::lexicographical_compare(a.list()->items.begin(), a.list()->items.end(),
                                        b.list()->items.begin(), b.list()->items.end(), Less);
  }
  throw Error(fmt::format("{} and {} have no order", a.TypeName(), b.TypeName()));
}

bool Contains(const Value& container, const Value& item) {
  if (const auto* text = container.get<std::string>()) {
    return text->find(ToText(item, "the left side of 'in'")) != std::string::npos;
  }
  if (container.dict() != nullptr) return container.dict()->Find(item) != nullptr;
  const std::vector<Value> items = Iterate(container);
  return std::any_of(items.begin(), items.end(), [&](const Value& i) { return Equal(i, item); });
}

std::vector<std::string> Characters(std::string_view utf8) {
  std::vector<std::string> characters;
  for (const char c : utf8) {
    if ((c & 0xC0) == 0x80 && !characters.empty()) {
      characters.back() += c;
    } else {
      characters.emplace_back(1, c);
    }
  }
  return characters;
}

std::vector<Value> Iterate(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.list() != nullptr) return value.list()->items;
  std::vector<Value> items;
  if (value.dict() != nullptr) {
    for (const auto& item : value.dict()->items) items.push_back(item.first);
    return items;
  }
  if (const auto* text = value.get<std::string>()) {
    for (std::string& character : Characters(*text)) items.emplace_back(std::move(character));
    return items;
  }
  throw Error(fmt::format("{} cannot be iterated over", value.TypeName()));
}

int64_t ToInt(const Value& value, std::string_view what) {
  if (const auto* number = value.get<int64_t>()) return *number;
  if (const auto* flag = value.get<bool>()) return *flag ? 1 : 0;
  throw Error(fmt::format("{} must be an integer, not {}", what, value.TypeName()));
}

double ToDouble(const Value& value) {
  if (const auto* number = value.get<double>()) return *number;
  if (const auto* number = value.get<int64_t>()) return static_cast<double>(*number);
  if (const auto* flag = value.get<bool>()) return *flag ? 1.0 : 0.0;
  throw Error(fmt::format("{} is not a number", value.TypeName()));
}

const std::string& ToText(const Value& value, std::string_view what) {
  if (const auto* text = value.get<std::string>()) return *text;
  if (value.is_undefined()) {
    throw Error(fmt::format("'{}' is undefined", value.get<Undefined>()->name));
  }
  throw Error(fmt::format("{} must be a string, not {}", what, value.TypeName()));
}

std::string ToJson(const Value& value, int indent, bool sort_keys, std::string_view item_separator,
                   std::string_view key_separator) {
  JsonWriter writer{indent, sort_keys, item_separator, key_separator, {}};
  writer.Write(value, 0);
  return std::move(writer.out);
}

}  // namespace everlong::jinja
