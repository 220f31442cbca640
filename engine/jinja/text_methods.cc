#include <algorithm>

#include "engine/jinja/access.h"
#include "engine/jinja/builtin.h"
#include "engine/jinja/compare.h"
#include "engine/jinja/format.h"
#include "engine/jinja/text_operations.h"
#include "engine/jinja/unicode.h"
#include "engine/text.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

std::string_view Self(const Call& call) {
  call.heap.Scan(*call.self.text());
  return *call.self.text();
}

template <Value (*kOperation)(Heap&, std::string_view)>
Value OnText(const Call& call) {
  return kOperation(call.heap, Self(call));
}

template <Side kSide>
Value StripMethod(const Call& call) {
  return Value(Strip(call.heap, Self(call), call.Arg(0), kSide));
}

// str.title(): upper case behind anything that has no case.
Value Title(const Call& call) {
  std::string out;
  bool begins = true;
  call.heap.Work(Self(call).size());
  for (size_t at = 0; at < Self(call).size();) {
    const char32_t c = NextCodePoint(*call.self.text(), &at);
    begins ? AppendTitle(c, &out) : AppendLower(c, &out);
    begins = !IsUpper(c) && !IsLower(c);
  }
  return call.heap.NewText(std::move(out));
}

Value SwapCase(const Call& call) {
  const std::string_view text = Self(call);
  std::string out;
  call.heap.Work(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t c = NextCodePoint(text, &at);
    IsUpper(c) ? AppendLower(c, &out) : AppendUpper(c, &out);
  }
  return call.heap.NewText(std::move(out));
}

// Whether there are characters and all of them are `kIs`.
template <bool (*kIs)(char32_t)>
Value AllAre(const Call& call) {
  const std::string_view text = Self(call);
  call.heap.Work(text.size());
  for (size_t at = 0; at < text.size();) {
    if (!kIs(NextCodePoint(text, &at))) return Value(false);
  }
  return Value(!text.empty());
}

bool IsAlphanumeric(char32_t c) {
  return IsAlphabetic(c) || IsNumeric(c);
}

// Whether there are characters with case and none of them is of the other case.
template <bool (*kIs)(char32_t), bool (*kIsOther)(char32_t)>
Value CaseIs(const Call& call) {
  const std::string_view text = Self(call);
  call.heap.Work(text.size());
  bool found = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = NextCodePoint(text, &at);
    if (kIsOther(c)) return Value(false);
    found |= kIs(c);
  }
  return Value(found);
}

// Pieces are added in the order in which they are found; `limit` splits at most, any number where
// it is negative.
void SplitAtSpace(std::string_view text, int64_t limit, ListBuilder* parts) {
  for (text = TrimStart(text); !text.empty(); text = TrimStart(text)) {
    size_t end = limit == 0 ? text.size() : 0;
    for (size_t next = end; end < text.size(); end = next) {
      if (IsSpace(NextCodePoint(text, &next))) break;
    }
    parts->Add(Value(text.substr(0, end)));
    text.remove_prefix(end);
    --limit;
  }
}

void SplitAtSpaceFromEnd(std::string_view text, int64_t limit, ListBuilder* parts) {
  for (text = TrimEnd(text); !text.empty(); text = TrimEnd(text)) {
    size_t begin = limit == 0 ? 0 : text.size();
    while (begin > 0) {
      const std::string_view last = LastCharacter(text.substr(0, begin));
      if (TrimEnd(last).empty()) break;
      begin -= last.size();
    }
    parts->Add(Value(text.substr(begin)));
    text.remove_suffix(text.size() - begin);
    --limit;
  }
}

void SplitAt(std::string_view separator, std::string_view text, int64_t limit, ListBuilder* parts) {
  for (; limit != 0; --limit) {
    const size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    parts->Add(Value(text.substr(0, at)));
    text.remove_prefix(at + separator.size());
  }
  parts->Add(Value(text));
}

void SplitAtFromEnd(std::string_view separator, std::string_view text, int64_t limit,
                    ListBuilder* parts) {
  for (; limit != 0; --limit) {
    const size_t at = text.rfind(separator);
    if (at == std::string_view::npos) break;
    parts->Add(Value(text.substr(at + separator.size())));
    text = text.substr(0, at);
  }
  parts->Add(Value(text));
}

std::string_view Separator(const Call& call) {
  const std::string_view separator = call.Text(0, "");
  if (separator.empty()) throw Error(fmt::format("{}: the separator is empty", call.callee));
  call.heap.Search(*call.self.text(), separator);
  return separator;
}

Value Split(const Call& call) {
  ListBuilder parts(call.heap);
  call.heap.Work(Self(call).size() / 16);
  if (call.Arg(0).is_none()) {
    SplitAtSpace(Self(call), call.Int(1, -1), &parts);
  } else {
    SplitAt(Separator(call), Self(call), call.Int(1, -1), &parts);
  }
  return parts.Finish();
}

Value SplitFromEnd(const Call& call) {
  ListBuilder parts(call.heap);
  call.heap.Work(Self(call).size() / 16);
  if (call.Arg(0).is_none()) {
    SplitAtSpaceFromEnd(Self(call), call.Int(1, -1), &parts);
  } else {
    SplitAtFromEnd(Separator(call), Self(call), call.Int(1, -1), &parts);
  }
  return GetSlice(call.heap, parts.Finish(), Value(), Value(), Value(int64_t{-1}));
}

Value SplitLines(const Call& call) {
  const std::string_view text = Self(call);
  ListBuilder lines(call.heap);
  call.heap.Work(text.size() / 16);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const std::string_view line = NextLine(text, &at);
    lines.Add(Value(call.Flag(0) ? text.substr(begin, at - begin) : line));
  }
  return lines.Finish();
}

// Text before the separator, the separator, text behind it.
Value Parts(const Call& call, size_t at, bool whole_is_first) {
  const std::string_view text = Self(call);
  ListBuilder parts(call.heap);
  if (at != std::string_view::npos) {
    const size_t end = at + Separator(call).size();
    for (const auto part : {text.substr(0, at), text.substr(at, end - at), text.substr(end)}) {
      parts.Add(Value(part));
    }
  } else {
    const std::string_view none;
    for (const auto part : {whole_is_first ? text : none, none, whole_is_first ? none : text}) {
      parts.Add(Value(part));
    }
  }
  return parts.Finish(Flavor::kTuple);
}

Value Partition(const Call& call) {
  return Parts(call, Self(call).find(Separator(call)), true);
}

Value PartitionFromEnd(const Call& call) {
  return Parts(call, Self(call).rfind(Separator(call)), false);
}

// self[start:end], which find, count, startswith and endswith look at.
std::string_view Window(const Call& call) {
  const Value window = GetSlice(call.heap, call.self, call.Arg(1), call.Arg(2), Value());
  return ToText(window, fmt::format("what {} searches", call.callee));
}

template <bool (*kMatches)(std::string_view, std::string_view)>
Value MatchesAny(const Call& call) {
  const std::string_view window = Window(call);
  const List* list = call.Arg(0).list();
  if (list == nullptr || list->flavor != Flavor::kTuple) {
    return Value(kMatches(window, call.Text(0, "")));
  }
  return Value(std::any_of(list->items.begin(), list->items.end(), [&](const Value& affix) {
    call.heap.Work(1);
    return kMatches(window, ToText(affix, "a prefix or suffix"));
  }));
}

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.starts_with(prefix);
}

bool EndsWith(std::string_view text, std::string_view suffix) {
  return text.ends_with(suffix);
}

// Index of a character, -1 where the text is not found.
template <bool kLast>
int64_t Position(const Call& call) {
  const std::string_view text = Self(call);
  const std::string_view window = Window(call);
  const std::string_view sought = call.Text(0, "");
  call.heap.Search(window, sought);
  const size_t at = kLast ? window.rfind(sought) : window.find(sought);
  if (at == std::string_view::npos) return -1;
  const auto before = static_cast<size_t>(window.data() - text.data()) + at;
  return static_cast<int64_t>(CountCharacters(text.substr(0, before)));
}

template <bool kLast>
Value FindText(const Call& call) {
  return Value{Position<kLast>(call)};
}

template <bool kLast>
Value Index(const Call& call) {
  const int64_t position = Position<kLast>(call);
  if (position < 0) throw Error(fmt::format("{}: the text is not found", call.callee));
  return Value(position);
}

Value Count(const Call& call) {
  const std::string_view window = Window(call);
  const std::string_view sought = call.Text(0, "");
  if (sought.empty()) return Value(static_cast<int64_t>(CountCharacters(window)) + 1);
  call.heap.Search(window, sought);
  int64_t count = 0;
  for (size_t at = window.find(sought); at != std::string_view::npos;
       at = window.find(sought, at + sought.size())) {
    ++count;
  }
  return Value(count);
}

Value ReplaceMethod(const Call& call) {
  return Replace(call.heap, Self(call), call.Text(0, ""), call.Text(1, ""), call.Int(2, -1));
}

Value RemovePrefix(const Call& call) {
  const std::string_view prefix = call.Text(0, "");
  return Value(Self(call).substr(Self(call).starts_with(prefix) ? prefix.size() : 0));
}

Value RemoveSuffix(const Call& call) {
  const std::string_view text = Self(call);
  const std::string_view suffix = call.Text(0, "");
  return Value(text.substr(0, text.size() - (text.ends_with(suffix) ? suffix.size() : 0)));
}

Value Join(const Call& call) {
  TextBuilder out(call.heap);
  bool first = true;
  for (const Value& item : Elements(call.heap, call.Arg(0))) {
    if (!std::exchange(first, false)) out.Append(Self(call));
    call.heap.Work(1);
    out.Append(ToText(item, "an element that is joined"));
  }
  return out.Finish();
}

template <Side kSide>
Value Justify(const Call& call) {
  const std::string_view fill = call.Text(1, " ");
  if (CountCharacters(fill) != 1)
    throw Error(fmt::format("{}: fill by one character", call.callee));
  return Pad(call.heap, Self(call), call.Int(0, 0), fill, kSide);
}

Value ZeroFill(const Call& call) {
  const std::string_view text = Self(call);
  const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  const int64_t width = call.Int(0, 0) - static_cast<int64_t>(sign);
  const Value digits = Pad(call.heap, text.substr(sign), width, "0", Side::kLeft);
  TextBuilder out(call.heap);
  out.Append(text.substr(0, sign));
  out.Append(*digits.text());
  return out.Finish();
}

Value Format(const Call& call) {
  return FormatBraces(call.heap, Self(call), call.rest);
}

}  // namespace

std::span<const Builtin> TextMethods() {
  static constexpr Builtin kMethods[] = {
      {"capitalize", "", OnText<Capitalize>},
      {"casefold", "", OnText<Lower>},
      {"center", "width fill? /", Justify<Side::kBoth>},
      {"count", "sub start? end? /", Count},
      {"endswith", "suffix start? end? /", MatchesAny<EndsWith>},
      {"find", "sub start? end? /", FindText<false>},
      {"format", "*", Format},
      {"index", "sub start? end? /", Index<false>},
      {"isalnum", "", AllAre<IsAlphanumeric>},
      {"isalpha", "", AllAre<IsAlphabetic>},
      {"isdecimal", "", AllAre<IsDigit>},
      {"isdigit", "", AllAre<IsDigit>},
      {"islower", "", CaseIs<IsLower, IsUpper>},
      {"isspace", "", AllAre<IsSpace>},
      {"isupper", "", CaseIs<IsUpper, IsLower>},
      {"join", "iterable /", Join},
      {"ljust", "width fill? /", Justify<Side::kRight>},
      {"lower", "", OnText<Lower>},
      {"lstrip", "chars? /", StripMethod<Side::kLeft>},
      {"partition", "sep /", Partition},
      {"removeprefix", "prefix /", RemovePrefix},
      {"removesuffix", "suffix /", RemoveSuffix},
      {"replace", "old new count? /", ReplaceMethod},
      {"rfind", "sub start? end? /", FindText<true>},
      {"rindex", "sub start? end? /", Index<true>},
      {"rjust", "width fill? /", Justify<Side::kLeft>},
      {"rpartition", "sep /", PartitionFromEnd},
      {"rsplit", "sep? maxsplit?", SplitFromEnd},
      {"rstrip", "chars? /", StripMethod<Side::kRight>},
      {"split", "sep? maxsplit?", Split},
      {"splitlines", "keepends?", SplitLines},
      {"startswith", "prefix start? end? /", MatchesAny<StartsWith>},
      {"strip", "chars? /", StripMethod<Side::kBoth>},
      {"swapcase", "", SwapCase},
      {"title", "", Title},
      {"upper", "", OnText<Upper>},
      {"zfill", "width /", ZeroFill},
  };
  return kMethods;
}

}  // namespace everlong::jinja
