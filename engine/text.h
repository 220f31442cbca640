// UTF-8, the byte-level alphabet and a compact list of strings: what all parts of the tokenizer
// share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace everlong {

// Strings back to back in one buffer: two allocations for a whole vocabulary.
class StringTable {
 public:
  void Reserve(size_t num_strings, size_t num_bytes);
  void Append(std::string_view text);
  size_t size() const { return ends_.size(); }
  // Valid until the next Append.
  std::string_view operator[](size_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;
};

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

void AppendUtf8(char32_t code_point, std::string* text);

// Length of the valid sequence that `text` (not empty) begins with, or 0.
size_t Utf8Length(std::string_view text);

// The code point at `*offset` of valid UTF-8; moves `*offset` behind it.
char32_t NextCodePoint(std::string_view text, size_t* offset);

// Where the last code point of valid UTF-8 (not empty) begins.
size_t LastCodePointOffset(std::string_view text);

// Valid UTF-8 without the white space (Unicode's White_Space) at its beginning or end.
std::string_view StripLeft(std::string_view text);
std::string_view StripRight(std::string_view text);

// Offset of the first byte that is not part of a valid sequence, or npos. Surrogates, overlong
// forms and values above U+10FFFF are invalid.
size_t FindInvalidUtf8(std::string_view text);

// Each longest invalid prefix of a sequence becomes one U+FFFD (Unicode 3.9, "maximal subparts").
std::string ReplaceInvalidUtf8(std::string_view bytes);

// How many bytes at the end of `bytes` begin a sequence that more bytes could complete: 0 to 3.
size_t IncompleteUtf8Suffix(std::string_view bytes);

// GPT-2's alphabet writes each byte as one printable code point. Returns the bytes behind `text`,
// or nothing where it has a code point outside the alphabet.
std::optional<std::string> BytesFromAlphabet(std::string_view text);

}  // namespace everlong
