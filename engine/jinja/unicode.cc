#include "engine/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>

#include "engine/text.h"

namespace everlong::jinja {
namespace {

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

char32_t SimpleUpper(char32_t c) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}

char32_t SimpleLower(char32_t c) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

bool IsContinuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

// Unicode's full case folding: up to three characters.
struct Folding {
  utf8proc_int32_t characters[4];
  size_t count = 0;
};

Folding Fold(char32_t c) {
  Folding folding;
  int last_boundclass = 0;
  const utf8proc_ssize_t count = utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(c), folding.characters, 4, UTF8PROC_CASEFOLD, &last_boundclass);
  folding.count = count < 0 ? 0 : static_cast<size_t>(count);
  return folding;
}

}  // namespace

bool IsSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsAlphabetic(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDigit(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_ND;
}

bool IsNumeric(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

// Symbols and Roman numerals have case, too.
bool IsUpper(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LU || (!IsAlphabetic(c) && SimpleLower(c) != c);
}

bool IsLower(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LL || (!IsAlphabetic(c) && SimpleUpper(c) != c);
}

bool IsPrintable(char32_t c) {
  if (c < 0x7F) return c >= ' ';
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

bool IsLineBreak(char32_t c) {
  return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

// utf8proc maps one to one. Where lower case folds to several characters ("ß" to "ss"), their
// upper cases are the full mapping.
void AppendUpper(char32_t c, std::string* out) {
  if (c >= 0x80 && Category(c) != UTF8PROC_CATEGORY_LU) {
    if (const Folding folding = Fold(c); folding.count > 1) {
      for (size_t i = 0; i < folding.count; ++i) {
        AppendUtf8(SimpleUpper(static_cast<char32_t>(folding.characters[i])), out);
      }
      return;
    }
  }
  AppendUtf8(SimpleUpper(c), out);
}

void AppendLower(char32_t c, std::string* out) {
  constexpr char32_t kDottedCapitalI = 0x130;  // the only one with a lower case of two characters
  if (c == kDottedCapitalI) {
    *out += "i\u0307";
  } else {
    AppendUtf8(SimpleLower(c), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  const auto title = static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
  const bool one_to_one = c < 0x80 || !IsLower(c) || Category(title) == UTF8PROC_CATEGORY_LT;
  const Folding folding = one_to_one ? Folding{} : Fold(c);
  if (folding.count < 2) return AppendUtf8(title, out);
  bool titled = false;
  for (size_t i = 0; i < folding.count; ++i) {
    const auto lower = static_cast<char32_t>(folding.characters[i]);
    const char32_t first = titled ? lower : SimpleUpper(lower);
    titled |= first != lower;
    AppendUtf8(first, out);
  }
}

std::string ToUpper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) AppendUpper(NextCodePoint(text, &at), &out);
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) AppendLower(NextCodePoint(text, &at), &out);
  return out;
}

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); }));
}

size_t CharacterOffset(std::string_view text, size_t index) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (!IsContinuation(text[at]) && index-- == 0) return at;
  }
  return at;
}

std::string_view LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && IsContinuation(text[at])) --at;
  return text.substr(at);
}

std::string_view TrimStart(std::string_view text) {
  size_t at = 0;
  for (size_t next = 0; at < text.size() && IsSpace(NextCodePoint(text, &next)); at = next) {
  }
  return text.substr(at);
}

std::string_view TrimEnd(std::string_view text) {
  while (!text.empty()) {
    const std::string_view last = LastCharacter(text);
    size_t at = 0;
    if (!IsSpace(NextCodePoint(last, &at))) break;
    text.remove_suffix(last.size());
  }
  return text;
}

std::string_view NextCharacter(std::string_view text, size_t* at) {
  const size_t begin = *at;
  NextCodePoint(text, at);
  return text.substr(begin, *at - begin);
}

std::string_view NextLine(std::string_view text, size_t* at) {
  const size_t begin = *at;
  while (*at < text.size()) {
    const size_t end = *at;
    const char32_t c = NextCodePoint(text, at);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && *at < text.size() && text[*at] == '\n') ++*at;
    return text.substr(begin, end - begin);
  }
  return text.substr(begin);
}

}  // namespace everlong::jinja
