// Typed reading of JSON files that others wrote: model geometry, tensor tables.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace everlong {

// The object that `text` holds. Anything else, a key given twice and nesting deeper than 32 levels
// are INVALID_ARGUMENT.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

// A value as an error message shows it: short, on one line.
std::string DescribeJson(const nlohmann::json& value);

struct IntRange {
  int64_t min;
  int64_t max;
};
struct NumberRange {
  double min;
  double max;
};

// Keys under which messages show others, where the object was made from a file with other keys.
using ShownKeys = std::map<std::string, std::string, std::less<>>;

// Reads the keys of one object. A bad value reads as something in range and the first one is kept
// in status(), so that callers read every key first and check once. A null counts as absent; an
// absent key without a fallback is bad. One thread.
class JsonObject {
 public:
  // `json` is an object and outlives this; `where` names it in messages, e.g. "config.json".
  JsonObject(const nlohmann::json& json, std::string where, ShownKeys shown = {});

  // Null where the key is absent.
  const nlohmann::json* Find(std::string_view key) const;
  // An explicit null, where that means something else than absence.
  bool IsNull(std::string_view key) const;

  int64_t Int(std::string_view key, IntRange range, std::optional<int64_t> fallback = {});
  double Number(std::string_view key, NumberRange range, std::optional<double> fallback = {});
  bool Bool(std::string_view key, std::optional<bool> fallback = {});
  std::string String(std::string_view key, std::optional<std::string_view> fallback = {});
  // One integer or a list of them; absent: empty.
  std::vector<int64_t> Ints(std::string_view key, IntRange range);

  // Marks the key's value as bad: "<where>: <key> is <value>; <reason>".
  void Refuse(std::string_view key, std::string_view reason);

  // Keeps the first bad value of an object inside this one.
  void Adopt(const absl::Status& inner) { status_.Update(inner); }

  const std::string& where() const { return where_; }
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json* FindOrRefuse(std::string_view key, bool required);
  std::string_view Shown(std::string_view key) const;

  const nlohmann::json& json_;
  std::string where_;
  ShownKeys shown_;
  absl::Status status_;
};

}  // namespace everlong
