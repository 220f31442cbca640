#include <algorithm>

#include "engine/jinja/arithmetic.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/format.h"
#include "engine/jinja/print.h"
#include "engine/jinja/text_operations.h"
#include "engine/jinja/unicode.h"
#include "engine/text.h"

namespace everlong::jinja {
namespace {

// Text filters take any value and work on its str().
Text Self(const Call& call) {
  return ToPrinted(call.heap, call.self);
}

template <Value (*kOperation)(Heap&, std::string_view)>
Value OnText(const Call& call) {
  const Text text = Self(call);
  return Value(Text{*kOperation(call.heap, text.view).text(), text.safe});
}

// Upper case behind white space and opening brackets, which differs from str.title().
Value Title(Heap& heap, std::string_view text) {
  constexpr std::u32string_view kOpening = U"-({[<";
  heap.Work(text.size());
  std::string out;
  bool begins = true;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = NextCodePoint(text, &at);
    begins ? AppendUpper(c, &out) : AppendLower(c, &out);
    begins = IsSpace(c) || kOpening.find(c) != std::u32string_view::npos;
  }
  return heap.NewText(std::move(out));
}

Value Trim(const Call& call) {
  const Text text = Self(call);
  return Value(Text{Strip(call.heap, text.view, call.Arg(0), Side::kBoth), text.safe});
}

Value ReplaceFilter(const Call& call) {
  const std::string_view from = ToPrinted(call.heap, call.Arg(0)).view;
  const std::string_view to = ToPrinted(call.heap, call.Arg(1)).view;
  const int64_t count = call.Arg(2).is_none() ? -1 : call.Int(2, -1);
  return Replace(call.heap, Self(call).view, from, to, count);
}

std::string_view Margin(const Call& call) {
  const Value width = call.Arg(0, Value(int64_t{4}));
  if (width.text() != nullptr) return *width.text();
  TextBuilder margin(call.heap);
  margin.Append(static_cast<size_t>(std::max<int64_t>(ToInt(width, "a width"), 0)), ' ');
  return *margin.Finish().text();
}

Value Indent(const Call& call) {
  const std::string_view margin = Margin(call);
  const Value terminated = Apply(call.heap, Arithmetic::kAdd, call.self, Value("\n"));
  const std::string_view text = *terminated.text();
  call.heap.Work(text.size());
  TextBuilder out(call.heap);
  for (size_t at = 0; at < text.size();) {
    const bool first = at == 0;
    const std::string_view line = NextLine(text, &at);
    if (!first) out.Append("\n");
    if (first ? call.Flag(1) : call.Flag(2) || !line.empty()) out.Append(margin);
    out.Append(line);
  }
  return out.Finish();
}

Value String(const Call& call) {
  return Value(Self(call));
}

Value Safe(const Call& call) {
  return Value(Text{Self(call).view, true});
}

Value ForceEscape(const Call& call) {
  TextBuilder out(call.heap);
  AppendEscaped(Self(call).view, &out);
  return Value(Text{*out.Finish().text(), true});
}

Value Escape(const Call& call) {
  const Text text = Self(call);
  return text.safe ? Value(text) : ForceEscape(call);
}

Value Center(const Call& call) {
  return Pad(call.heap, Self(call).view, call.Int(0, 80), " ", Side::kBoth);
}

Value Format(const Call& call) {
  const std::string_view format = Self(call).view;
  if (!call.rest.named.empty()) {
    if (!call.rest.positional.empty()) throw Error("format takes positional or named arguments");
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [name, value] : call.rest.named) items.emplace_back(Value(name), value);
    return FormatPercent(call.heap, format, call.heap.NewDict(std::move(items)));
  }
  ListBuilder values(call.heap);
  for (const Value& value : call.rest.positional) values.Add(value);
  return FormatPercent(call.heap, format, values.Finish(Flavor::kTuple));
}

std::optional<std::string> IndentOf(const Call& call, const Value& indent) {
  if (indent.is_none()) return std::nullopt;
  if (indent.text() != nullptr) return std::string(*indent.text());
  const auto width = static_cast<size_t>(std::max<int64_t>(ToInt(indent, "tojson's indent"), 0));
  call.heap.Reserve(width);
  return std::string(width, ' ');
}

JsonStyle StyleOf(const Call& call) {
  JsonStyle style{
      .indent = IndentOf(call, call.Arg(1)), .sort_keys = call.Flag(3), .ascii_only = call.Flag(0)};
  if (style.indent) style.item_separator.resize(1);
  if (const Value separators = call.Arg(2); !separators.is_none()) {
    const std::span<const Value> pair = Elements(call.heap, separators);
    if (pair.size() != 2) throw Error("tojson: 'separators' takes two strings");
    style.item_separator = ToText(pair[0], "a separator");
    style.key_separator = ToText(pair[1], "a separator");
  }
  return style;
}

Value ToJsonFilter(const Call& call) {
  return ToJson(call.heap, call.self, StyleOf(call));
}

}  // namespace

std::span<const Builtin> TextFilters() {
  static constexpr Builtin kFilters[] = {
      {"capitalize", "", OnText<Capitalize>},
      {"center", "width?", Center},
      {"e", "/", Escape},
      {"escape", "/", Escape},
      {"forceescape", "", ForceEscape},
      {"format", "*", Format},
      {"indent", "width? first? blank?", Indent},
      {"lower", "", OnText<Lower>},
      {"replace", "old new count?", ReplaceFilter},
      {"safe", "", Safe},
      {"string", "/", String},
      {"title", "", OnText<Title>},
      {"tojson", "ensure_ascii? indent? separators? sort_keys?", ToJsonFilter},
      {"trim", "chars?", Trim},
      {"upper", "", OnText<Upper>},
  };
  return kFilters;
}

}  // namespace everlong::jinja
