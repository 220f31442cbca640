#include <algorithm>
#include <cmath>

#include "engine/jinja/compare.h"
#include "engine/jinja/print.h"
#include "engine/text.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Heap& heap, const JsonStyle& style) : heap_(heap), style_(style), out_(heap) {}

  void Write(const Value& value, int depth) {
    heap_.Work(1);
    if (const std::string_view* text = value.text()) {
      WriteText(*text);
    } else if (const List* list = value.list()) {
      WriteList(*list, depth);
    } else if (const Dict* dict = value.dict()) {
      WriteDict(*dict, depth);
    } else {
      out_.Append(Atom(value));
    }
  }

  Value Finish() { return out_.Finish(); }

 private:
  static std::string Atom(const Value& value) {
    if (value.is_none()) return "null";
    if (const bool* flag = value.As<bool>()) return *flag ? "true" : "false";
    if (const int64_t* whole = value.As<int64_t>()) return fmt::format_int(*whole).str();
    const double* number = value.As<double>();
    if (number == nullptr) {
      throw Error(fmt::format("a {} cannot be written as JSON", TypeName(value)));
    }
    if (std::isnan(*number)) return "NaN";
    if (std::isinf(*number)) return *number > 0 ? "Infinity" : "-Infinity";
    return FloatText(*number);
  }

  void NewLine(int depth) {
    if (!style_.indent) return;
    out_.Append("\n");
    for (int i = 0; i < depth; ++i) out_.Append(*style_.indent);
  }

  void WriteList(const List& list, int depth) {
    if (list.flavor != Flavor::kList && list.flavor != Flavor::kTuple) {
      throw Error(fmt::format("a {} cannot be written as JSON", TypeName(Value(&list))));
    }
    out_.Append("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine(depth + 1);
      Write(list.items[i], depth + 1);
    }
    if (!list.items.empty()) NewLine(depth);
    out_.Append("]");
  }

  void WriteDict(const Dict& dict, int depth) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [this](const auto* a, const auto* b) {
        return Less(heap_, a->first, b->first);
      });
    }
    out_.Append("{");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      NewLine(depth + 1);
      WriteKey(items[i]->first);
      out_.Append(style_.key_separator);
      Write(items[i]->second, depth + 1);
    }
    if (!items.empty()) NewLine(depth);
    out_.Append("}");
  }

  void WriteKey(const Value& key) {
    if (const std::string_view* text = key.text()) {
      WriteText(*text);
    } else {
      out_.Append(fmt::format("\"{}\"", Atom(key)));
    }
  }

  void WriteText(std::string_view text) {
    heap_.Work(text.size() / 16);
    out_.Append("\"");
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t end = at;
      const char32_t c = NextCodePoint(text, &at);
      if (!NeedsEscape(c)) continue;
      out_.Append(text.substr(begin, end - begin));
      WriteEscape(c);
      begin = at;
    }
    out_.Append(text.substr(begin));
    out_.Append("\"");
  }

  bool NeedsEscape(char32_t c) const {
    return c < 0x20 || c == '"' || c == '\\' || (style_.ascii_only && c > 0x7E);
  }

  void WriteEscape(char32_t c) {
    constexpr std::u32string_view kSpecial = U"\"\\\n\r\t\b\f";
    constexpr std::string_view kLetters = "\"\\nrtbf";
    const auto code = static_cast<uint32_t>(c);
    if (const size_t at = kSpecial.find(c); at != std::u32string_view::npos) {
      out_.Append("\\");
      out_.Append(kLetters.substr(at, 1));
    } else if (code < 0x10000) {
      out_.Append(fmt::format("\\u{:04x}", code));
    } else {
      out_.Append(
          fmt::format("\\u{:04x}\\u{:04x}", 0xD7C0 + (code >> 10), 0xDC00 + (code & 0x3FF)));
    }
  }

  Heap& heap_;
  const JsonStyle& style_;
  TextBuilder out_;
};

}  // namespace

Value ToJson(Heap& heap, const Value& value, const JsonStyle& style) {
  JsonWriter writer(heap, style);
  writer.Write(value, 0);
  return writer.Finish();
}

}  // namespace everlong::jinja
