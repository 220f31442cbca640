// Python's view of text: characters are code points, and white space, case and printability
// follow the Unicode database. All text is valid UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace everlong::jinja {

bool IsSpace(char32_t c);
bool IsAlphabetic(char32_t c);
bool IsDigit(char32_t c);    // decimal
bool IsNumeric(char32_t c);  // numbers of any kind
bool IsUpper(char32_t c);
bool IsLower(char32_t c);
// Whether repr() writes the character as it is.
bool IsPrintable(char32_t c);
// Whether str.splitlines() ends a line there.
bool IsLineBreak(char32_t c);

// Full mappings: one character may become several.
void AppendUpper(char32_t c, std::string* out);
void AppendLower(char32_t c, std::string* out);
void AppendTitle(char32_t c, std::string* out);
std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);

size_t CountCharacters(std::string_view text);
// Byte offset of character `index`; text.size() where there are fewer.
size_t CharacterOffset(std::string_view text, size_t index);

// The last character of `text`, which is not empty.
std::string_view LastCharacter(std::string_view text);

std::string_view TrimStart(std::string_view text);
std::string_view TrimEnd(std::string_view text);

// What begins at `*at` < text.size(), which moves behind it: a character, or a line of
// str.splitlines() without its end.
std::string_view NextCharacter(std::string_view text, size_t* at);
std::string_view NextLine(std::string_view text, size_t* at);

}  // namespace everlong::jinja
