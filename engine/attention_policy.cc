#include "engine/attention_policy.h"

#include <algorithm>
#include <span>

#include "engine/attention_presets.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

constexpr int32_t kMaxContextTokens = 1 << 30;
constexpr int32_t kMaxBudgetTokens = 1 << 20;
constexpr int32_t kMaxChunkTokens = 1 << 16;
constexpr int32_t kMaxDilation = 64;
constexpr int32_t kMaxRerank = 64;
constexpr int32_t kMaxSieve = 64;
// Trained lengths that apparent position plus apparent distance may reach (measured).
constexpr double kPositionLaw = 1.25;
// Layers whose probes stand at their chunk's number, which gives them locality (section 3.3).
constexpr int32_t kEarlyLayers = 3;
// Classes of the layers that have no configuration of their own: all but the early ones, and those.
constexpr size_t kSharedClasses = 2;

constexpr int64_t RoundDown(int64_t value, int64_t unit) {
  return value - value % unit;
}

constexpr int64_t RoundUp(int64_t value, int64_t unit) {
  return RoundDown(value + unit - 1, unit);
}

absl::Status InRange(const char* field, int64_t value, int64_t low, int64_t high,
                     int64_t unit = 1) {
  if (value >= low && value <= high && value % unit == 0) return absl::OkStatus();
  const std::string multiple = unit == 1 ? "" : fmt::format(" and a multiple of {}", unit);
  return absl::InvalidArgumentError(
      fmt::format("attention.{}: {} must be in [{}, {}]{}", field, value, low, high, multiple));
}

absl::Status SetBudget(int32_t tokens, SelectorSettings& s) {
  if (s.name == SelectorName::kWindow) return absl::OkStatus();
  SelectParams& p = s.params;
  const int32_t unit =
      s.name == SelectorName::kHip ? p.stages[p.num_stages - 1].chunk_tokens : kBlockTokens;
  RETURN_IF_ERROR(InRange("budget", tokens, unit, kMaxBudgetTokens, unit));
  p.keep_blocks = tokens / kBlockTokens;
  for (int i = 0; i < p.num_stages; ++i) {
    HipStage& stage = p.stages[i];
    const int32_t needed = static_cast<int32_t>(RoundUp(tokens, stage.chunk_tokens));
    const bool last = i + 1 == p.num_stages;
    if (last || stage.keep_chunks * stage.chunk_tokens < needed) {
      stage.keep_chunks = needed / stage.chunk_tokens;
    }
  }
  return absl::OkStatus();
}

absl::Status SetRefresh(const std::vector<int32_t>& refresh, SelectorSettings& s) {
  if (static_cast<int32_t>(refresh.size()) != s.num_stages()) {
    return absl::InvalidArgumentError(
        fmt::format("attention.refresh: {} intervals for a selector of {} stages", refresh.size(),
                    s.num_stages()));
  }
  for (size_t i = 0; i < refresh.size(); ++i) {
    RETURN_IF_ERROR(InRange("refresh", refresh[i], 1, 4096));
    if (i > 0 && refresh[i - 1] % refresh[i] != 0) {
      return absl::InvalidArgumentError(
          fmt::format("attention.refresh: {} is not a multiple of the next stage's {}",
                      refresh[i - 1], refresh[i]));
    }
    s.refresh[i] = refresh[i];
  }
  return absl::OkStatus();
}

absl::Status CheckStages(const std::vector<StageSettings>& stages) {
  RETURN_IF_ERROR(InRange("stages", static_cast<int64_t>(stages.size()), 1, kMaxStages));
  for (size_t i = 0; i < stages.size(); ++i) {
    const auto [chunk, keep, every_key, pool_rows] = stages[i];
    RETURN_IF_ERROR(InRange("stages", chunk, kBlockTokens, kMaxChunkTokens));
    if ((chunk & (chunk - 1)) != 0) {
      return absl::InvalidArgumentError(
          fmt::format("attention.stages: chunks of {} tokens, which is no power of two", chunk));
    }
    RETURN_IF_ERROR(InRange("stages", keep, chunk, kMaxBudgetTokens, chunk));
    if (i == 0) continue;
    if (chunk >= stages[i - 1].chunk || keep > stages[i - 1].keep) {
      return absl::InvalidArgumentError(fmt::format(
          "attention.stages: {}:{} after {}:{}; chunks must shrink, and no stage keeps more than "
          "the one before",
          chunk, keep, stages[i - 1].chunk, stages[i - 1].keep));
    }
  }
  return absl::OkStatus();
}

// Intervals stay as they are where the number of stages does.
absl::Status SetStages(const AttentionOverrides& o, bool decode, SelectorSettings& s) {
  if (s.name != SelectorName::kHip || o.stages.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckStages(o.stages));
  SelectParams& p = s.params;
  const auto num_stages = static_cast<int32_t>(o.stages.size());
  if (decode && num_stages != p.num_stages && o.refresh.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("attention.stages: {} instead of {} stages need a refresh interval each",
                    num_stages, p.num_stages));
  }
  p.num_stages = num_stages;
  for (int32_t i = 0; i < num_stages; ++i) {
    const StageSettings& stage = o.stages[i];
    p.stages[i] = {.chunk_tokens = stage.chunk,
                   .keep_chunks = stage.keep / stage.chunk,
                   .every_key = stage.every_key,
                   .pool_rows = stage.pool_rows};
  }
  p.keep_blocks = o.stages.back().keep / kBlockTokens;
  return absl::OkStatus();
}

absl::Status SetSelector(const AttentionOverrides& o, bool decode, SelectorSettings& s) {
  RETURN_IF_ERROR(SetStages(o, decode, s));
  if (o.dilation) RETURN_IF_ERROR(InRange("dilation", *o.dilation, 0, kMaxDilation));
  if (o.rerank) RETURN_IF_ERROR(InRange("rerank", *o.rerank, 1, kMaxRerank));
  if (o.sieve) RETURN_IF_ERROR(InRange("sieve", *o.sieve, 1, kMaxSieve));
  if (s.name == SelectorName::kHip) {
    s.params.last_probe = o.last_probe.value_or(s.params.last_probe);
  } else if (s.name == SelectorName::kScan) {
    s.params.dilation = o.dilation.value_or(s.params.dilation);
    s.params.rerank = o.rerank.value_or(s.params.rerank);
    s.params.sieve = o.sieve.value_or(s.params.sieve);
  }
  s.params.all_heads = o.all_heads.value_or(s.params.all_heads);
  if (o.budget) RETURN_IF_ERROR(SetBudget(*o.budget, s));
  if (decode && !o.refresh.empty()) RETURN_IF_ERROR(SetRefresh(o.refresh, s));
  return absl::OkStatus();
}

// Settings of one kind of selector need one that they belong to.
absl::Status CheckUsed(const AttentionOverrides& o, std::span<const AttentionSettings> classes) {
  const auto check = [&](bool given, const char* field, SelectorName name) -> absl::Status {
    const bool used = std::any_of(classes.begin(), classes.end(), [&](const auto& s) {
      return s.prefill.name == name || s.decode.name == name;
    });
    if (!given || used) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("attention.{}: neither prompts nor output use the selector {}", field,
                    name == SelectorName::kHip ? "hip" : "scan"));
  };
  RETURN_IF_ERROR(check(!o.stages.empty(), "stages", SelectorName::kHip));
  RETURN_IF_ERROR(check(o.last_probe.has_value(), "chunk_score", SelectorName::kHip));
  RETURN_IF_ERROR(check(o.dilation.has_value(), "dilation", SelectorName::kScan));
  RETURN_IF_ERROR(check(o.rerank.has_value(), "rerank", SelectorName::kScan));
  return check(o.sieve.has_value(), "sieve", SelectorName::kScan);
}

absl::Status Apply(const AttentionOverrides& o, int64_t trained_length, AttentionSettings& s) {
  if (o.preset) {
    const AttentionMode mode = s.mode;
    const bool early = s.early;
    ASSIGN_OR_RETURN(s, Preset(*o.preset, trained_length));
    s.mode = mode;
    s.early = early;
  }
  if (o.selector) {
    s.prefill = NamedSelector(*o.selector);
    s.decode = NamedSelector(*o.selector);
  }
  if (o.mode) s.mode = *o.mode;
  if (o.positions) s.positions = *o.positions;
  if (o.num_sinks) s.num_sinks = *o.num_sinks;
  if (o.window) s.window = *o.window;
  RETURN_IF_ERROR(SetSelector(o, /*decode=*/false, s.prefill));
  RETURN_IF_ERROR(SetSelector(o, /*decode=*/true, s.decode));
  for (SelectorSettings* selector : {&s.prefill, &s.decode}) {
    selector->params.probes = s.early ? ProbePositions::kChunk : ProbePositions::kRelative;
  }
  return absl::OkStatus();
}

int32_t BudgetTokens(const AttentionSettings& s) {
  return std::max(s.prefill.params.keep_blocks, s.decode.params.keep_blocks) * kBlockTokens;
}

absl::Status Check(const AttentionSettings& s, int64_t trained_length) {
  RETURN_IF_ERROR(InRange("sinks", s.num_sinks, 0, 1 << 16, kBlockTokens));
  RETURN_IF_ERROR(InRange("window", s.window, kPageTokens, 1 << 20, kBlockTokens));
  if (s.mode == AttentionMode::kDense) return absl::OkStatus();
  const int64_t renumbered = int64_t{s.num_sinks} + BudgetTokens(s) + s.window + kQueryBlockTokens;
  if (s.positions == PositionRule::kStreaming && renumbered > trained_length) {
    return absl::InvalidArgumentError(fmt::format(
        "attention: sinks {} + budget {} + window {} + query block {} = {} positions, more than "
        "the trained length {}; lower one of them or use positions clipped",
        s.num_sinks, BudgetTokens(s), s.window, kQueryBlockTokens, renumbered, trained_length));
  }
  const int64_t clipped = int64_t{s.window} + kClipMargin + kQueryBlockTokens;
  if (s.positions != PositionRule::kTrue && clipped > trained_length) {
    return absl::InvalidArgumentError(
        fmt::format("attention.window: {} leaves no room within the trained length {} for the {} "
                    "positions that clipping needs",
                    s.window, trained_length, clipped - s.window));
  }
  return absl::OkStatus();
}

absl::Status Check(const AttentionPolicy& policy) {
  for (const AttentionSettings& s : policy.classes) {
    RETURN_IF_ERROR(Check(s, policy.trained_length));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AttentionPolicy> MakePolicy(const AttentionConfig& config, int32_t num_layers,
                                           int64_t trained_length) {
  AttentionPolicy policy{.layer_class = std::vector<int32_t>(num_layers, 0),
                         .trained_length = trained_length};
  ASSIGN_OR_RETURN(AttentionSettings base, Preset("default", trained_length));
  AttentionSettings early = base;
  early.early = true;
  RETURN_IF_ERROR(Apply(config.all, trained_length, base));
  RETURN_IF_ERROR(Apply(config.all, trained_length, early));
  policy.classes = {base, early};
  RETURN_IF_ERROR(CheckUsed(config.all, policy.classes));
  std::fill_n(policy.layer_class.begin(), std::min(num_layers, kEarlyLayers), 1);
  for (const auto& [layers, overrides] : config.layers) {
    for (const int32_t layer : layers) {
      RETURN_IF_ERROR(InRange("layers", layer, 0, num_layers - 1));
      AttentionSettings settings = policy.classes[policy.layer_class[layer]];
      RETURN_IF_ERROR(Apply(overrides, trained_length, settings));
      RETURN_IF_ERROR(CheckUsed(overrides, {&settings, 1}));
      policy.layer_class[layer] = static_cast<int32_t>(policy.classes.size());
      policy.classes.push_back(settings);
    }
  }
  RETURN_IF_ERROR(Check(policy));
  return policy;
}

absl::StatusOr<AttentionPolicy> Override(const AttentionPolicy& policy,
                                         const AttentionOverrides& overrides) {
  AttentionPolicy changed = policy;
  for (size_t i = 0; i < changed.classes.size(); ++i) {
    AttentionSettings& settings = changed.classes[i];
    if (i >= kSharedClasses && settings.mode == AttentionMode::kDense) continue;
    RETURN_IF_ERROR(Apply(overrides, policy.trained_length, settings));
  }
  RETURN_IF_ERROR(CheckUsed(overrides, changed.classes));
  RETURN_IF_ERROR(Check(changed));
  return changed;
}

std::string PositionWarning(const AttentionPolicy& policy) {
  for (const AttentionSettings& s : policy.classes) {
    if (s.mode == AttentionMode::kDense || s.positions == PositionRule::kTrue) continue;
    const int64_t distance = s.positions == PositionRule::kStreaming
                                 ? int64_t{s.num_sinks} + BudgetTokens(s) + s.window
                                 : ClipDistance(s);
    int64_t position = distance + kQueryBlockTokens;
    // Tokens within the trained length stay where they are.
    const bool by_length = s.mode == AttentionMode::kAuto || s.positions == PositionRule::kAuto;
    if (by_length) position = std::max(position, policy.trained_length - 1);
    const auto sum = static_cast<double>(position + distance);
    if (sum <= kPositionLaw * static_cast<double>(policy.trained_length)) continue;
    return fmt::format(
        "apparent position {} + apparent distance {} of far keys pass {} times the trained length "
        "{}: expect lost recall, or lower sinks, budget or window, or use positions clipped",
        position, distance, kPositionLaw, policy.trained_length);
  }
  return "";
}

int64_t SparseBegin(const AttentionSettings& s, int64_t trained_length) {
  switch (s.mode) {
    case AttentionMode::kDense:
      return kMaxContextTokens;
    case AttentionMode::kInfiniteHip:
      return 0;
    case AttentionMode::kAuto:
      break;
  }
  return RoundDown(trained_length, kQueryBlockTokens);
}

int32_t ClipDistance(const AttentionSettings& s) {
  const auto growth = static_cast<int32_t>(RoundUp(s.decode.refresh[0], kBlockTokens));
  return s.window + std::max(kClipMargin, growth + kBlockTokens);
}

bool MayBeSparse(const AttentionPolicy& policy, int64_t end_position) {
  return std::any_of(policy.classes.begin(), policy.classes.end(), [&](const auto& settings) {
    return SparseBegin(settings, policy.trained_length) < end_position;
  });
}

int32_t SelectionCapacity(const AttentionPolicy& policy) {
  int32_t capacity = 0;
  for (const AttentionSettings& s : policy.classes) {
    for (const SelectParams* p : {&s.prefill.params, &s.decode.params}) {
      capacity = std::max(capacity, p->keep_blocks);
      for (int i = 0; i < p->num_stages; ++i) {
        capacity = std::max(capacity, p->stages[i].keep_chunks);
      }
    }
  }
  return capacity;
}

}  // namespace everlong
