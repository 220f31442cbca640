#include "engine/jinja/text_operations.h"

#include "engine/jinja/unicode.h"
#include "engine/text.h"

namespace everlong::jinja {
namespace {

// Removes characters at the start of `text` while `matches`.
template <typename Matches>
std::string_view StripStart(std::string_view text, Matches matches) {
  for (size_t at = 0; at < text.size();) {
    const std::string_view c = NextCharacter(text, &at);
    if (!matches(c)) return text.substr(at - c.size());
  }
  return {};
}

template <typename Matches>
std::string_view StripEnd(std::string_view text, Matches matches) {
  while (!text.empty()) {
    const std::string_view last = LastCharacter(text);
    if (!matches(last)) break;
    text.remove_suffix(last.size());
  }
  return text;
}

Value Insert(Heap& heap, std::string_view text, std::string_view between, int64_t count) {
  TextBuilder out(heap);
  for (size_t at = 0;;) {
    heap.Work(1);
    if (count != 0) out.Append(between);
    count -= count > 0 ? 1 : 0;
    if (at == text.size()) return out.Finish();
    out.Append(NextCharacter(text, &at));
  }
}

}  // namespace

Value Upper(Heap& heap, std::string_view text) {
  heap.Work(text.size() / 16);
  return heap.NewText(ToUpper(text));
}

Value Lower(Heap& heap, std::string_view text) {
  heap.Work(text.size() / 16);
  return heap.NewText(ToLower(text));
}

Value Capitalize(Heap& heap, std::string_view text) {
  heap.Work(text.size() / 16);
  std::string out;
  size_t at = 0;
  if (!text.empty()) AppendTitle(NextCodePoint(text, &at), &out);
  return heap.NewText(out + ToLower(text.substr(at)));
}

std::string_view Strip(Heap& heap, std::string_view text, const Value& characters, Side side) {
  heap.Scan(text);
  if (characters.is_none()) {
    if (side != Side::kRight) text = TrimStart(text);
    if (side != Side::kLeft) text = TrimEnd(text);
    return text;
  }
  const std::string_view set = ToText(characters, "what is stripped");
  const auto in_set = [&](std::string_view c) {
    heap.Scan(set);
    return set.find(c) != std::string_view::npos;
  };
  if (side != Side::kRight) text = StripStart(text, in_set);
  if (side != Side::kLeft) text = StripEnd(text, in_set);
  return text;
}

Value Replace(Heap& heap, std::string_view text, std::string_view from, std::string_view to,
              int64_t count) {
  heap.Search(text, from);
  if (from.empty()) return Insert(heap, text, to, count);
  TextBuilder out(heap);
  size_t begin = 0;
  for (; count != 0; --count) {
    heap.Work(1);
    const size_t at = text.find(from, begin);
    if (at == std::string_view::npos) break;
    out.Append(text.substr(begin, at - begin));
    out.Append(to);
    begin = at + from.size();
  }
  out.Append(text.substr(begin));
  return out.Finish();
}

Value Pad(Heap& heap, std::string_view text, int64_t width, std::string_view fill, Side side) {
  heap.Scan(text);
  const int64_t size = static_cast<int64_t>(CountCharacters(text));
  const int64_t missing = width > size ? width - size : 0;
  // Python centers with the odd blank on the left where the width is odd.
  const int64_t centered = missing / 2 + (missing & width & 1);
  const int64_t left = side == Side::kLeft ? missing : side == Side::kRight ? 0 : centered;
  TextBuilder out(heap);
  for (int64_t i = 0; i < missing; ++i) {
    if (i == left) out.Append(text);
    heap.Work(1);
    out.Append(fill);
  }
  if (left == missing) out.Append(text);
  return out.Finish();
}

}  // namespace everlong::jinja
