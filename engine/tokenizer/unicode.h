// Whole-text mappings that Unicode defines, over utf8proc's tables.
#pragma once

#include <string>
#include <string_view>

namespace everlong {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Both take valid UTF-8 and linear time, up to sorting runs of combining marks.
std::string ToNormalForm(std::string_view text, NormalForm form);
std::string ToLowercase(std::string_view text);

}  // namespace everlong
