#include <charconv>
#include <cmath>
#include <limits>

#include "engine/jinja/builtin.h"
#include "engine/jinja/unicode.h"
#include "fmt/format.h"

namespace everlong::jinja {
namespace {

// Digits without the underscores that may stand between two of them; nothing where one stands
// elsewhere.
std::optional<std::string> WithoutUnderscores(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      digits += text[i];
    } else if (i == 0 || i + 1 == text.size() || !std::isalnum(static_cast<uint8_t>(text[i - 1])) ||
               !std::isalnum(static_cast<uint8_t>(text[i + 1]))) {
      return std::nullopt;
    }
  }
  return digits;
}

// Takes "0x", "0o" or "0b" away where it belongs to the base; base 0 takes it from there.
void TakeBasePrefix(std::string_view* text, int64_t* base) {
  constexpr std::string_view kLetters = "xob";
  constexpr int64_t kBases[] = {16, 8, 2};
  const bool has_letter = text->size() > 2 && (*text)[0] == '0';
  const size_t at =
      has_letter ? kLetters.find(static_cast<char>((*text)[1] | 0x20)) : std::string_view::npos;
  if (at != std::string_view::npos && (*base == 0 || *base == kBases[at])) {
    *base = kBases[at];
    text->remove_prefix((*text)[2] == '_' ? 3 : 2);
  } else if (*base == 0) {
    *base = 10;
  }
}

// int(text, base); nothing where it is no integer.
std::optional<int64_t> ParseWhole(std::string_view text, int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  text = TrimEnd(TrimStart(text));
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  TakeBasePrefix(&text, &base);
  const std::optional<std::string> digits = WithoutUnderscores(text);
  if (!digits || digits->empty() || digits->front() == '-') return std::nullopt;
  const std::string number = (negative ? "-" : "") + *digits;
  int64_t value = 0;
  const char* end = number.data() + number.size();
  const auto result = std::from_chars(number.data(), end, value, static_cast<int>(base));
  if (result.ptr != end) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) {
    throw Error("an integer leaves the range of 64 bits");
  }
  return value;
}

// float(text); nothing where it is no number.
std::optional<double> ParseFloat(std::string_view text) {
  text = TrimEnd(TrimStart(text));
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const std::optional<std::string> digits = WithoutUnderscores(text);
  if (!digits || digits->find_first_of("-+(") == 0 || digits->find('(') != std::string::npos) {
    return std::nullopt;
  }
  double value = 0;
  const char* end = digits->data() + digits->size();
  const auto result = std::from_chars(digits->data(), end, value);
  if (result.ptr != end || digits->empty()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) value = std::strtod(digits->c_str(), nullptr);
  return negative ? -value : value;
}

Value Truncate(double value) {
  constexpr double kLimit = 9223372036854775808.0;  // 2^63
  if (std::abs(value) >= kLimit) throw Error("int: the number does not fit 64 bits");
  return Value(static_cast<int64_t>(value));
}

Value Int(const Call& call) {
  FailIfUndefined(call.self);
  const Value fallback = call.Arg(0, Value(int64_t{0}));
  if (call.self.is_whole()) return Value(ToInt(call.self, "int"));
  if (const double* number = call.self.As<double>()) {
    return std::isnan(*number) ? fallback : Truncate(*number);
  }
  const std::string_view* text = call.self.text();
  if (text == nullptr) return fallback;
  call.heap.Work(text->size() / 8);
  if (const auto whole = ParseWhole(*text, call.Int(1, 10))) return Value(*whole);
  const auto number = ParseFloat(*text);
  return number && std::isfinite(*number) ? Truncate(*number) : fallback;
}

Value Float(const Call& call) {
  FailIfUndefined(call.self);
  if (call.self.is_number()) return Value(ToDouble(call.self, "float"));
  const Value fallback = call.Arg(0, Value(0.0));
  const std::string_view* text = call.self.text();
  if (text == nullptr) return fallback;
  call.heap.Work(text->size() / 8);
  const auto number = ParseFloat(*text);
  return number ? Value(*number) : fallback;
}

Value Abs(const Call& call) {
  if (!call.self.is_whole()) return Value(std::abs(ToDouble(call.self, "what abs takes")));
  const int64_t value = ToInt(call.self, "what abs takes");
  if (value == std::numeric_limits<int64_t>::min()) throw Error("abs leaves 64 bits");
  return Value(value < 0 ? -value : value);
}

// Python's round(): to the nearest decimal, ties to even, on the exact binary value.
double RoundToNearest(double value, int64_t precision) {
  constexpr int64_t kMaxPrecision = 323;
  if (!std::isfinite(value) || precision > kMaxPrecision) return value;
  const std::string digits = fmt::format("{:.{}f}", value, static_cast<int>(precision));
  return std::strtod(digits.c_str(), nullptr);
}

Value Round(const Call& call) {
  const int64_t precision = call.Int(0, 0);
  const std::string_view method = call.Text(1, "common");
  if (precision < 0) throw Error("round: 'precision' must not be negative");
  const double value = ToDouble(call.self, "what round takes");
  if (method == "common") {
    return call.self.is_whole() ? Value(ToInt(call.self, "round"))
                                : Value(RoundToNearest(value, precision));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (!std::isfinite(value * scale)) throw Error("round: the number is too large");
  if (method == "ceil") return Value(std::ceil(value * scale) / scale);
  if (method == "floor") return Value(std::floor(value * scale) / scale);
  throw Error(fmt::format("round: the method '{}' is none of common, ceil, floor", method));
}

}  // namespace

std::span<const Builtin> NumberFilters() {
  static constexpr Builtin kFilters[] = {
      {"abs", "/", Abs},
      {"float", "default?", Float},
      {"int", "default? base?", Int},
      {"round", "precision? method?", Round},
  };
  return kFilters;
}

}  // namespace everlong::jinja
