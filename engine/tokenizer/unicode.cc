#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "engine/text.h"

namespace everlong {
namespace {

// The longest, of U+FDFA, takes 18.
constexpr int kMaxDecomposition = 32;

utf8proc_option_t OptionsOf(NormalForm form) {
  int options = UTF8PROC_STABLE;
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  options |= composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

int CombiningClass(int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

void AppendDecomposed(char32_t code_point, utf8proc_option_t options,
                      std::vector<int32_t>* code_points) {
  int32_t parts[kMaxDecomposition];
  int boundary = 0;
  const auto num_parts = utf8proc_decompose_char(static_cast<int32_t>(code_point), parts,
                                                 kMaxDecomposition, options, &boundary);
  code_points->insert(code_points->end(), parts, parts + num_parts);
}

// Canonical ordering: runs of marks by combining class. utf8proc's own way takes quadratic time.
void SortMarks(std::vector<int32_t>* code_points) {
  const auto is_mark = [](int32_t code_point) { return CombiningClass(code_point) != 0; };
  const auto by_class = [](int32_t a, int32_t b) { return CombiningClass(a) < CombiningClass(b); };
  auto end = code_points->begin();
  while (true) {
    const auto begin = std::find_if(end, code_points->end(), is_mark);
    if (begin == code_points->end()) return;
    end = std::find_if_not(begin, code_points->end(), is_mark);
    std::stable_sort(begin, end, by_class);
  }
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 128; });
}

}  // namespace

std::string ToNormalForm(std::string_view text, NormalForm form) {
  const utf8proc_option_t options = OptionsOf(form);
  std::string result;
  result.reserve(text.size());
  std::vector<int32_t> code_points;
  while (!text.empty()) {
    // Nothing composes across the end of a line.
    const std::string_view line = text.substr(0, std::min(text.find('\n'), text.size() - 1) + 1);
    text.remove_prefix(line.size());
    if (IsAscii(line)) {
      result += line;
      continue;
    }
    code_points.clear();
    for (size_t i = 0; i < line.size();) {
      AppendDecomposed(NextCodePoint(line, &i), options, &code_points);
    }
    SortMarks(&code_points);
    const auto size = utf8proc_normalize_utf32(
        code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), options);
    for (utf8proc_ssize_t i = 0; i < size; ++i) AppendUtf8(code_points[i], &result);
  }
  return result;
}

std::string ToLowercase(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const char32_t code_point = NextCodePoint(text, &i);
    // The one letter whose lower case is two code points: i and a dot above.
    if (code_point == 0x130) {
      result += "i\u0307";
    } else {
      AppendUtf8(utf8proc_tolower(static_cast<int32_t>(code_point)), &result);
    }
  }
  return result;
}

}  // namespace everlong
