#include "server/attention_options.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>
#include <vector>

#include "engine/attention_presets.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

template <class Value>
using Words = std::vector<std::pair<std::string_view, Value>>;

const Words<AttentionMode> kModes = {{"auto", AttentionMode::kAuto},
                                     {"dense", AttentionMode::kDense},
                                     {"infinite_hip", AttentionMode::kInfiniteHip}};
const Words<SelectorName> kSelectors = {
    {"hip", SelectorName::kHip}, {"scan", SelectorName::kScan}, {"window", SelectorName::kWindow}};
const Words<PositionRule> kPositions = {{"auto", PositionRule::kAuto},
                                        {"true", PositionRule::kTrue},
                                        {"streaming", PositionRule::kStreaming},
                                        {"clipped", PositionRule::kClipped}};

const Words<bool> kChunkScores = {{"path", false}, {"last", true}};
const Words<bool> kHeadReductions = {{"kv_head", false}, {"all", true}};

absl::Status Invalid(const std::string& message) {
  return absl::InvalidArgumentError(message);
}

absl::Status CheckWord(const std::vector<std::string_view>& words, std::string_view value) {
  if (std::find(words.begin(), words.end(), value) != words.end()) return absl::OkStatus();
  return Invalid(fmt::format("'{}' is not one of {}", value, fmt::join(words, ", ")));
}

template <class Value>
absl::Status SetWord(const Words<Value>& words, const std::string& value,
                     std::optional<Value>& to) {
  std::vector<std::string_view> names;
  for (const auto& [name, meaning] : words) {
    if (name == value) to = meaning;
    names.push_back(name);
  }
  return CheckWord(names, value);
}

absl::StatusOr<int32_t> ToNumber(std::string_view text) {
  int32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return number;
  return Invalid(fmt::format("'{}' is not a number", text));
}

std::vector<std::string> Split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (true) {
    const size_t end = text.find(separator);
    if (end != 0 && !text.empty()) parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

absl::StatusOr<std::vector<int32_t>> ToNumbers(const std::string& value) {
  std::vector<int32_t> numbers;
  for (const std::string& part : Split(value, ',')) {
    ASSIGN_OR_RETURN(const int32_t number, ToNumber(part));
    numbers.push_back(number);
  }
  return numbers;
}

// "256:32768:pool:every-key".
absl::StatusOr<StageSettings> ToStage(const std::string& text) {
  const std::vector<std::string> parts = Split(text, ':');
  if (parts.size() < 2) return Invalid(fmt::format("'{}' is not CHUNK:KEEP", text));
  StageSettings stage;
  ASSIGN_OR_RETURN(stage.chunk, ToNumber(parts[0]));
  ASSIGN_OR_RETURN(stage.keep, ToNumber(parts[1]));
  for (size_t i = 2; i < parts.size(); ++i) {
    RETURN_IF_ERROR(CheckWord({"pool", "every-key"}, parts[i]));
    (parts[i] == "pool" ? stage.pool_rows : stage.every_key) = true;
  }
  return stage;
}

absl::Status SetStages(const std::string& value, std::vector<StageSettings>& stages) {
  stages.clear();
  for (const std::string& part : Split(value, ',')) {
    ASSIGN_OR_RETURN(stages.emplace_back(), ToStage(part));
  }
  return absl::OkStatus();
}

// "4-7" or "4".
absl::Status AppendRange(const std::string& range, std::vector<int32_t>& layers) {
  const size_t dash = range.find('-');
  ASSIGN_OR_RETURN(const int32_t first, ToNumber(range.substr(0, dash)));
  int32_t last = first;
  if (dash != std::string::npos) {
    ASSIGN_OR_RETURN(last, ToNumber(range.substr(dash + 1)));
  }
  if (last < first || last - first > 4096) return Invalid(fmt::format("'{}' is no range", range));
  for (int32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
  return absl::OkStatus();
}

}  // namespace

absl::Status SetAttention(std::string_view name, const std::string& value,
                          AttentionOverrides& overrides) {
  if (name == "mode") return SetWord(kModes, value, overrides.mode);
  if (name == "selector") return SetWord(kSelectors, value, overrides.selector);
  if (name == "positions") return SetWord(kPositions, value, overrides.positions);
  if (name == "chunk-score") return SetWord(kChunkScores, value, overrides.last_probe);
  if (name == "head-reduction") return SetWord(kHeadReductions, value, overrides.all_heads);
  if (name == "stages") return SetStages(value, overrides.stages);
  if (name == "preset") {
    overrides.preset = value;
    return CheckWord(PresetNames(), value);
  }
  if (name == "refresh") {
    ASSIGN_OR_RETURN(overrides.refresh, ToNumbers(value));
    return absl::OkStatus();
  }
  for (const auto& [field, number] : {std::pair("budget", &AttentionOverrides::budget),
                                      {"sinks", &AttentionOverrides::num_sinks},
                                      {"window", &AttentionOverrides::window},
                                      {"dilation", &AttentionOverrides::dilation},
                                      {"rerank", &AttentionOverrides::rerank},
                                      {"sieve", &AttentionOverrides::sieve}}) {
    if (name != field) continue;
    ASSIGN_OR_RETURN(overrides.*number, ToNumber(value));
    return absl::OkStatus();
  }
  return Invalid(
      fmt::format("'{}' is not one of mode, preset, selector, positions, budget, sinks, window, "
                  "refresh, stages, chunk-score, head-reduction, dilation, rerank, sieve",
                  name));
}

absl::Status SetAttentionLayers(const std::string& value, AttentionConfig& config) {
  config.layers.clear();
  for (const std::string& group : Split(value, ';')) {
    std::vector<int32_t> layers;
    AttentionOverrides overrides;
    for (const std::string& word : Split(group, ' ')) {
      const size_t equals = word.find('=');
      if (equals != std::string::npos) {
        RETURN_IF_ERROR(SetAttention(word.substr(0, equals), word.substr(equals + 1), overrides));
        continue;
      }
      for (const std::string& range : Split(word, ',')) RETURN_IF_ERROR(AppendRange(range, layers));
    }
    if (layers.empty()) return Invalid(fmt::format("'{}' names no layer", group));
    config.layers.emplace_back(std::move(layers), std::move(overrides));
  }
  return absl::OkStatus();
}

}  // namespace everlong
