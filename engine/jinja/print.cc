#include "engine/jinja/print.h"

#include <charconv>
#include <cmath>

#include "engine/jinja/unicode.h"
#include "engine/text.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

void AppendEscapedCharacter(char32_t c, TextBuilder* out) {
  const auto code = static_cast<uint32_t>(c);
  if (c == '\n') {
    out->Append("\\n");
  } else if (c == '\r') {
    out->Append("\\r");
  } else if (c == '\t') {
    out->Append("\\t");
  } else if (c < 0x100) {
    out->Append(fmt::format("\\x{:02x}", code));
  } else if (c < 0x10000) {
    out->Append(fmt::format("\\u{:04x}", code));
  } else {
    out->Append(fmt::format("\\U{:08x}", code));
  }
}

void PrintQuoted(std::string_view text, TextBuilder* out) {
  const bool doubled =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  out->Append(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCodePoint(text, &at);
    if (!IsPrintable(c)) {
      AppendEscapedCharacter(c, out);
      continue;
    }
    if (c == U'\\' || c == static_cast<char32_t>(quote)) out->Append(1, '\\');
    out->Append(text.substr(begin, at - begin));
  }
  out->Append(1, quote);
}

struct Brackets {
  std::string_view open;
  std::string_view close;
};

Brackets BracketsOf(const List& list) {
  switch (list.flavor) {
    case Flavor::kList:
      return {"[", "]"};
    case Flavor::kTuple:
      return {"(", list.items.size() == 1 ? ",)" : ")"};
    case Flavor::kKeys:
      return {"dict_keys([", "])"};
    case Flavor::kValues:
      return {"dict_values([", "])"};
    case Flavor::kItems:
      return {"dict_items([", "])"};
    case Flavor::kRange:
    case Flavor::kGenerator:
      break;
  }
  throw Error(fmt::format("a {} cannot be printed: apply 'list' first", TypeName(Value(&list))));
}

void PrintList(Heap& heap, const List& list, TextBuilder* out) {
  const Brackets brackets = BracketsOf(list);
  out->Append(brackets.open);
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out->Append(", ");
    PrintRepr(heap, list.items[i], out);
  }
  out->Append(brackets.close);
}

void PrintDict(Heap& heap, const Dict& dict, TextBuilder* out) {
  out->Append("{");
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out->Append(", ");
    PrintRepr(heap, dict.items[i].first, out);
    out->Append(": ");
    PrintRepr(heap, dict.items[i].second, out);
  }
  out->Append("}");
}

}  // namespace

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double magnitude = std::abs(value);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(buffer, end.ptr);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

void Print(Heap& heap, const Value& value, TextBuilder* out) {
  heap.Work(1);
  if (const std::string_view* text = value.text()) {
    out->Append(*text);
  } else if (value.is_none()) {
    out->Append("None");
  } else if (const bool* flag = value.As<bool>()) {
    out->Append(*flag ? "True" : "False");
  } else if (const int64_t* whole = value.As<int64_t>()) {
    out->Append(fmt::format_int(*whole).str());
  } else if (const double* number = value.As<double>()) {
    out->Append(FloatText(*number));
  } else if (const List* list = value.list()) {
    PrintList(heap, *list, out);
  } else if (const Dict* dict = value.dict()) {
    PrintDict(heap, *dict, out);
  } else if (!value.is_undefined()) {
    throw Error(fmt::format("a {} cannot be printed", TypeName(value)));
  }
}

void PrintRepr(Heap& heap, const Value& value, TextBuilder* out) {
  if (const std::string_view* text = value.text()) {
    heap.Work(text->size() / 16 + 1);
    const bool safe = value.As<Text>()->safe;
    if (safe) out->Append("Markup(");
    PrintQuoted(*text, out);
    if (safe) out->Append(")");
  } else if (value.is_undefined()) {
    out->Append("Undefined");
  } else {
    Print(heap, value, out);
  }
}

Text ToPrinted(Heap& heap, const Value& value) {
  if (const Text* text = value.As<Text>()) return *text;
  TextBuilder out(heap);
  Print(heap, value, &out);
  return *out.Finish().As<Text>();
}

void AppendEscaped(std::string_view text, TextBuilder* out) {
  constexpr std::string_view kSpecial = "&<>'\"";
  constexpr std::string_view kEntities[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
  size_t begin = 0;
  for (size_t at = text.find_first_of(kSpecial); at != std::string_view::npos;
       at = text.find_first_of(kSpecial, begin)) {
    out->Append(text.substr(begin, at - begin));
    out->Append(kEntities[kSpecial.find(text[at])]);
    begin = at + 1;
  }
  out->Append(text.substr(begin));
}

}  // namespace everlong::jinja
