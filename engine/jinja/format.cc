#include "engine/jinja/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/jinja/access.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/print.h"
#include "engine/jinja/unicode.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

constexpr int kMaxWidth = 4096;  // of a field, and digits of its precision

// Takes the longest prefix of characters in `set` from the front of `text`.
std::string_view TakeWhile(std::string_view set, std::string_view* text) {
  const std::string_view taken = text->substr(0, text->find_first_not_of(set));
  text->remove_prefix(taken.size());
  return taken;
}

int TakeNumber(std::string_view* text) {
  const std::string_view digits = TakeWhile("0123456789", text);
  int number = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (result.ec == std::errc::result_out_of_range || number > kMaxWidth) {
    throw Error(fmt::format("a format's width {} is above {}", digits, kMaxWidth));
  }
  return number;
}

// %[flags][width][.precision]conversion
struct Spec {
  std::string_view flags;
  int width;
  int precision;  // -1: none given
  char conversion;

  bool Has(char flag) const { return flags.find(flag) != std::string_view::npos; }
};

Spec TakeSpec(std::string_view* text) {
  Spec spec{};
  spec.flags = TakeWhile("-+ 0#", text);
  spec.width = TakeNumber(text);
  spec.precision = -1;
  if (text->starts_with('.')) {
    text->remove_prefix(1);
    spec.precision = TakeNumber(text);
  }
  if (text->empty()) throw Error("a format ends inside a field");
  spec.conversion = text->front();
  text->remove_prefix(1);
  return spec;
}

// A number's text without its sign.
std::string Digits(const Spec& spec, const Value& value) {
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  if (std::string_view("fFeEgG").find(spec.conversion) != std::string_view::npos) {
    const std::string presentation = fmt::format("{{:.{}{}}}", precision, spec.conversion);
    return fmt::format(fmt::runtime(presentation), std::abs(ToDouble(value, "what % formats")));
  }
  const double* number = value.As<double>();
  const bool decimal = std::string_view("diu").find(spec.conversion) != std::string_view::npos;
  if (decimal && number != nullptr && !(std::abs(*number) < 0x1p63)) {
    throw Error("a number does not fit 64 bits");
  }
  const int64_t whole =
      decimal && number != nullptr ? static_cast<int64_t>(*number) : ToInt(value, "what % formats");
  const uint64_t magnitude =
      whole < 0 ? -static_cast<uint64_t>(whole) : static_cast<uint64_t>(whole);
  std::string digits = spec.conversion == 'x'   ? fmt::format("{:x}", magnitude)
                       : spec.conversion == 'X' ? fmt::format("{:X}", magnitude)
                       : spec.conversion == 'o' ? fmt::format("{:o}", magnitude)
                                                : fmt::format("{}", magnitude);
  const auto min_digits = static_cast<size_t>(std::max(spec.precision, 0));
  if (digits.size() < min_digits) digits.insert(0, min_digits - digits.size(), '0');
  if (spec.Has('#') && !decimal) digits.insert(0, {'0', spec.conversion});
  return digits;
}

void AppendNumber(const Spec& spec, const Value& value, TextBuilder* out) {
  const std::string digits = Digits(spec, value);
  const bool negative = std::signbit(ToDouble(value, "what % formats"));
  const std::string_view sign = negative ? "-" : spec.Has('+') ? "+" : spec.Has(' ') ? " " : "";
  const size_t width = std::max(static_cast<size_t>(spec.width), digits.size() + sign.size());
  const size_t padding = width - digits.size() - sign.size();
  const bool left = spec.Has('-');
  const bool zeros = spec.Has('0') && !left;
  if (!left && !zeros) out->Append(padding, ' ');
  out->Append(sign);
  if (zeros) out->Append(padding, '0');
  out->Append(digits);
  if (left) out->Append(padding, ' ');
}

void AppendText(const Spec& spec, std::string_view text, TextBuilder* out) {
  if (spec.precision >= 0) {
    text = text.substr(0, CharacterOffset(text, static_cast<size_t>(spec.precision)));
  }
  const size_t size = CountCharacters(text);
  const size_t padding = std::max(static_cast<size_t>(spec.width), size) - size;
  if (!spec.Has('-')) out->Append(padding, ' ');
  out->Append(text);
  if (spec.Has('-')) out->Append(padding, ' ');
}

std::string_view Repr(Heap& heap, const Value& value) {
  TextBuilder out(heap);
  PrintRepr(heap, value, &out);
  return *out.Finish().text();
}

void AppendField(Heap& heap, const Spec& spec, const Value& value, TextBuilder* out) {
  if (spec.conversion == 's') {
    AppendText(spec, ToPrinted(heap, value).view, out);
  } else if (spec.conversion == 'r') {
    AppendText(spec, Repr(heap, value), out);
  } else if (std::string_view("diuxXofFeEgG").find(spec.conversion) != std::string_view::npos) {
    AppendNumber(spec, value, out);
  } else {
    throw Error(fmt::format("the conversion %{} is not supported", spec.conversion));
  }
}

// The values that the fields of a % format take, one after the other or by name.
class FieldValues {
 public:
  FieldValues(Heap& heap, const Value& values) : heap_(heap), values_(values) {
    const List* list = values.list();
    is_tuple_ = list != nullptr && list->flavor == Flavor::kTuple;
  }

  Value Next() {
    const size_t size = is_tuple_ ? values_.list()->items.size() : 1;
    if (next_ >= size) throw Error("a format has more fields than values");
    const size_t at = next_++;
    return is_tuple_ ? values_.list()->items[at] : values_;
  }

  Value Named(std::string_view name) {
    const Dict* dict = values_.dict();
    if (dict == nullptr) throw Error("a format with names needs a dict");
    next_ = 1;
    const Value* value = Find(heap_, *dict, Value(name));
    if (value == nullptr) throw Error(fmt::format("a format's dict has no '{}'", name));
    return *value;
  }

  // Only tuples and single values have to be used up, not what has elements by name or index.
  void FailIfLeft() const {
    const bool may_be_left = values_.dict() != nullptr || values_.is_undefined() ||
                             (values_.list() != nullptr && !is_tuple_);
    const size_t size = is_tuple_ ? values_.list()->items.size() : 1;
    if (!may_be_left && next_ < size) throw Error("a format has fewer fields than values");
  }

 private:
  Heap& heap_;
  const Value values_;
  bool is_tuple_;
  size_t next_ = 0;
};

// "(name)" behind a %, if it is there.
std::optional<std::string_view> TakeName(std::string_view* text) {
  if (!text->starts_with('(')) return std::nullopt;
  const size_t end = text->find(')');
  if (end == std::string_view::npos) throw Error("a format's name is not closed");
  const std::string_view name = text->substr(1, end - 1);
  text->remove_prefix(end + 1);
  return name;
}

// A replacement field of str.format() between its braces: name[.attribute|[element]]...[!r]
class Field {
 public:
  Field(Heap& heap, const Arguments& arguments) : heap_(heap), arguments_(arguments) {}

  void Append(std::string_view field, TextBuilder* out) {
    if (field.find_first_of(":{") != std::string_view::npos) {
      throw Error("format: a field's format after ':' is not supported");
    }
    const size_t mark = std::min(field.find('!'), field.size());
    const std::string_view conversion = field.substr(mark);
    if (!conversion.empty() && conversion != "!s" && conversion != "!r") {
      throw Error(fmt::format("format: the conversion {} is not supported", conversion));
    }
    const Value value = Evaluate(field.substr(0, mark));
    conversion == "!r" ? PrintRepr(heap_, value, out) : Print(heap_, value, out);
  }

 private:
  Value Evaluate(std::string_view path) {
    const size_t end = std::min(path.find_first_of(".["), path.size());
    Value value = First(path.substr(0, end));
    for (path.remove_prefix(end); !path.empty();) value = Step(value, &path);
    return value;
  }

  Value First(std::string_view name) {
    if (name.empty()) return Positional(next_++);
    if (name.find_first_not_of("0123456789") == std::string_view::npos) {
      return Positional(static_cast<size_t>(TakeNumber(&name)));
    }
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return value;
    }
    throw Error(fmt::format("format: there is no argument '{}'", name));
  }

  Value Positional(size_t index) const {
    if (index < arguments_.positional.size()) return arguments_.positional[index];
    throw Error(fmt::format("format: there is no argument {}", index));
  }

  // Takes ".attribute" or "[element]" from the front of `path`.
  Value Step(const Value& value, std::string_view* path) {
    if (path->front() == '.') {
      const std::string_view name = path->substr(1, path->find_first_of(".[", 1) - 1);
      path->remove_prefix(name.size() + 1);
      return GetAttribute(heap_, value, name);
    }
    const size_t end = path->find(']');
    if (path->front() != '[' || end == std::string_view::npos) {
      throw Error("format: a field's element is malformed");
    }
    std::string_view key = path->substr(1, end - 1);
    path->remove_prefix(end + 1);
    const bool is_index =
        !key.empty() && key.find_first_not_of("0123456789") == std::string_view::npos;
    return GetItem(heap_, value, is_index ? Value(int64_t{TakeNumber(&key)}) : Value(key));
  }

  Heap& heap_;
  const Arguments& arguments_;
  size_t next_ = 0;
};

}  // namespace

Value FormatPercent(Heap& heap, std::string_view format, const Value& values) {
  FieldValues fields(heap, values);
  TextBuilder out(heap);
  while (true) {
    heap.Work(1);
    const size_t mark = std::min(format.find('%'), format.size());
    out.Append(format.substr(0, mark));
    format.remove_prefix(mark);
    if (format.empty()) break;
    format.remove_prefix(1);
    const std::optional<std::string_view> name = TakeName(&format);
    const Spec spec = TakeSpec(&format);
    if (spec.conversion == '%') {
      out.Append("%");
    } else {
      AppendField(heap, spec, name ? fields.Named(*name) : fields.Next(), &out);
    }
  }
  fields.FailIfLeft();
  return out.Finish();
}

Value FormatBraces(Heap& heap, std::string_view format, const Arguments& arguments) {
  Field field(heap, arguments);
  TextBuilder out(heap);
  while (true) {
    heap.Work(1);
    const size_t brace = std::min(format.find_first_of("{}"), format.size());
    out.Append(format.substr(0, brace));
    format.remove_prefix(brace);
    if (format.empty()) return out.Finish();
    if (format.size() > 1 && format[0] == format[1]) {
      out.Append(format.substr(0, 1));
      format.remove_prefix(2);
      continue;
    }
    const size_t end = format.find('}');
    if (format[0] == '}' || end == std::string_view::npos) {
      throw Error("format: a brace has no partner");
    }
    field.Append(format.substr(1, end - 1), &out);
    format.remove_prefix(end + 1);
  }
}

}  // namespace everlong::jinja
