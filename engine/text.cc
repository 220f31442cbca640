#include "engine/text.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace everlong {
namespace {

uint8_t Byte(std::string_view text, size_t i) {
  return static_cast<uint8_t>(text[i]);
}

// Number of bytes that the lead byte announces and the range allowed for the second byte (Unicode
// table 3-7); length 0 for bytes that cannot lead.
struct Lead {
  uint8_t length;
  uint8_t second_min;
  uint8_t second_max;
};

constexpr Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes of `text` that fit the sequence its first byte announces: `complete` where all are there.
struct Prefix {
  size_t length;
  bool complete;
};

Prefix ValidPrefix(std::string_view text) {
  const Lead lead = LeadOf(Byte(text, 0));
  if (lead.length == 0) return {0, false};
  size_t length = 1;
  while (length < lead.length && length < text.size()) {
    const uint8_t byte = Byte(text, length);
    const uint8_t min = length == 1 ? lead.second_min : 0x80;
    const uint8_t max = length == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) break;
    ++length;
  }
  return {length, length == lead.length};
}

// Bytes that Latin-1 prints stand for themselves; the others take U+0100 onwards in order.
constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr char32_t kAlphabetEnd = 0x144;

// -1 for code points below kAlphabetEnd that stand for no byte.
constexpr std::array<int16_t, kAlphabetEnd> MakeAlphabet() {
  std::array<int16_t, kAlphabetEnd> byte_of{};
  for (int16_t& byte : byte_of) byte = -1;
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    byte_of[IsPrintable(byte) ? static_cast<char32_t>(byte) : next++] = static_cast<int16_t>(byte);
  }
  return byte_of;
}

constexpr std::array<int16_t, kAlphabetEnd> kByteOf = MakeAlphabet();

// Unicode's property White_Space.
bool IsWhiteSpace(char32_t code_point) {
  switch (code_point) {
    case ' ':
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (code_point >= '\t' && code_point <= '\r') ||
             (code_point >= 0x2000 && code_point <= 0x200A);
  }
}

}  // namespace

void StringTable::Reserve(size_t num_strings, size_t num_bytes) {
  ends_.reserve(num_strings);
  bytes_.reserve(num_bytes);
}

void StringTable::Append(std::string_view text) {
  bytes_.append(text);
  ends_.push_back(bytes_.size());
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto put = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
    return;
  }
  if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      put(0xE0 | code_point >> 12);
    } else {
      put(0xF0 | code_point >> 18);
      put(0x80 | (code_point >> 12 & 0x3F));
    }
    put(0x80 | (code_point >> 6 & 0x3F));
  }
  put(0x80 | (code_point & 0x3F));
}

size_t Utf8Length(std::string_view text) {
  const Prefix prefix = ValidPrefix(text);
  return prefix.complete ? prefix.length : 0;
}

char32_t NextCodePoint(std::string_view text, size_t* offset) {
  const uint8_t lead = Byte(text, (*offset)++);
  if (lead < 0x80) return lead;
  const int num_more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t code_point = lead & (0x3F >> num_more);
  for (int i = 0; i < num_more; ++i) {
    code_point = code_point << 6 | (Byte(text, (*offset)++) & 0x3F);
  }
  return code_point;
}

size_t LastCodePointOffset(std::string_view text) {
  size_t offset = text.size() - 1;
  while ((Byte(text, offset) & 0xC0) == 0x80) --offset;
  return offset;
}

std::string_view StripLeft(std::string_view text) {
  size_t begin = 0;
  for (size_t i = 0; i < text.size() && IsWhiteSpace(NextCodePoint(text, &i));) begin = i;
  return text.substr(begin);
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    const size_t last = LastCodePointOffset(text);
    size_t i = last;
    if (!IsWhiteSpace(NextCodePoint(text, &i))) break;
    text = text.substr(0, last);
  }
  return text;
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t word;
    if (text.size() - i >= sizeof(word)) {
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const size_t length = Utf8Length(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t valid = std::min(FindInvalidUtf8(bytes), bytes.size());
    text.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    AppendUtf8(kReplacementCharacter, &text);
    bytes.remove_prefix(std::max<size_t>(1, ValidPrefix(bytes).length));
  }
  return text;
}

size_t IncompleteUtf8Suffix(std::string_view bytes) {
  for (size_t length = 1; length <= 3 && length <= bytes.size(); ++length) {
    const std::string_view suffix = bytes.substr(bytes.size() - length);
    if ((Byte(suffix, 0) & 0xC0) == 0x80) continue;
    const Prefix prefix = ValidPrefix(suffix);
    return !prefix.complete && prefix.length == length ? length : 0;
  }
  return 0;
}

std::optional<std::string> BytesFromAlphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const char32_t code_point = NextCodePoint(text, &i);
    if (code_point >= kAlphabetEnd || kByteOf[code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[code_point]));
  }
  return bytes;
}

}  // namespace everlong
