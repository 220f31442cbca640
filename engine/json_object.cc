#include "engine/json_object.h"

#include <set>
#include <stdexcept>
#include <utility>

#include "fmt/format.h"

namespace everlong {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxShownBytes = 64;

// Follows a parse from event to event and throws at what the parser itself would let pass.
class StructureCheck {
 public:
  bool operator()(int /*depth*/, json::parse_event_t event, const json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (open_.size() == kMaxDepth) throw std::invalid_argument("nested too deeply");
        open_.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        open_.pop_back();
        break;
      case json::parse_event_t::key:
        if (!open_.back().insert(parsed.get<std::string>()).second) {
          throw std::invalid_argument(fmt::format("key {} is there twice", DescribeJson(parsed)));
        }
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> open_;  // keys of every open object, outermost first
};

bool IsIntegerIn(const json& value, IntRange range) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  return value.is_number_integer() && value.get<int64_t>() >= range.min &&
         value.get<int64_t>() <= range.max;
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  try {
    StructureCheck check;
    json parsed = json::parse(text.begin(), text.end(),
                              [&check](int depth, json::parse_event_t event, json& value) {
                                return check(depth, event, value);
                              });
    if (parsed.is_object()) return parsed;
    return absl::InvalidArgumentError("not a JSON object");
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(fmt::format("not JSON: syntax error at byte {}", error.byte));
  } catch (const json::exception&) {
    return absl::InvalidArgumentError("not JSON: a number out of range");
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

std::string DescribeJson(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  if (text.size() > kMaxShownBytes) text.replace(kMaxShownBytes, std::string::npos, "...");
  return text;
}

JsonObject::JsonObject(const json& json, std::string where, ShownKeys shown)
    : json_(json), where_(std::move(where)), shown_(std::move(shown)) {}

std::string_view JsonObject::Shown(std::string_view key) const {
  const auto shown = shown_.find(key);
  return shown == shown_.end() ? key : shown->second;
}

const json* JsonObject::Find(std::string_view key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

bool JsonObject::IsNull(std::string_view key) const {
  const auto it = json_.find(key);
  return it != json_.end() && it->is_null();
}

const json* JsonObject::FindOrRefuse(std::string_view key, bool required) {
  const json* value = Find(key);
  if (value == nullptr && required && status_.ok()) {
    status_ = absl::InvalidArgumentError(fmt::format("{}: {} is missing", where_, Shown(key)));
  }
  return value;
}

int64_t JsonObject::Int(std::string_view key, IntRange range, std::optional<int64_t> fallback) {
  const json* value = FindOrRefuse(key, !fallback);
  if (value == nullptr) return fallback.value_or(range.min);
  if (IsIntegerIn(*value, range)) return value->get<int64_t>();
  Refuse(key, fmt::format("it must be an integer from {} to {}", range.min, range.max));
  return range.min;
}

double JsonObject::Number(std::string_view key, NumberRange range, std::optional<double> fallback) {
  const json* value = FindOrRefuse(key, !fallback);
  if (value == nullptr) return fallback.value_or(range.min);
  if (value->is_number()) {
    const auto number = value->get<double>();
    if (number >= range.min && number <= range.max) return number;
  }
  Refuse(key, fmt::format("it must be a number from {} to {}", range.min, range.max));
  return range.min;
}

bool JsonObject::Bool(std::string_view key, std::optional<bool> fallback) {
  const json* value = FindOrRefuse(key, !fallback);
  if (value == nullptr) return fallback.value_or(false);
  if (value->is_boolean()) return value->get<bool>();
  Refuse(key, "it must be true or false");
  return false;
}

std::string JsonObject::String(std::string_view key, std::optional<std::string_view> fallback) {
  const json* value = FindOrRefuse(key, !fallback);
  if (value == nullptr) return std::string(fallback.value_or(""));
  if (value->is_string()) return value->get<std::string>();
  Refuse(key, "it must be a string");
  return "";
}

std::vector<int64_t> JsonObject::Ints(std::string_view key, IntRange range) {
  const json* value = Find(key);
  if (value == nullptr) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<int64_t> ints;
  for (const json& element : list) {
    if (IsIntegerIn(element, range)) {
      ints.push_back(element.get<int64_t>());
    } else {
      Refuse(key, fmt::format("it must hold integers from {} to {}, not {}", range.min, range.max,
                              DescribeJson(element)));
    }
  }
  return ints;
}

void JsonObject::Refuse(std::string_view key, std::string_view reason) {
  if (!status_.ok()) return;
  const json* value = Find(key);
  status_ = absl::InvalidArgumentError(
      fmt::format("{}: {} is {}; {}", where_, Shown(key),
                  value == nullptr ? std::string("absent") : DescribeJson(*value), reason));
}

}  // namespace everlong
