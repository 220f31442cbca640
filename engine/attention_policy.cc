#include "engine/attention_policy.h"

#include <algorithm>
#include <map>

#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

constexpr int32_t kMaxContextTokens = 1 << 30;
// Beyond the window's own growth between refreshes, so that far keys are never nearer than near
// ones.
constexpr int32_t kClipMargin = 64;
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

struct PaperPreset {
  std::array<int32_t, 3> chunk;
  std::array<int32_t, 3> keep;
  std::array<int32_t, 3> refresh;
};

// arXiv 2502.08910, appendix: three stages, rows pooled in all but the last.
const std::map<std::string_view, PaperPreset>& PaperPresets() {
  static const auto& presets = *new std::map<std::string_view, PaperPreset>{
      {"3k", {{256, 32, 8}, {32768, 8192, 2048}, {16, 8, 4}}},
      {"3k-fast", {{256, 32, 8}, {32768, 8192, 2048}, {32, 16, 8}}},
      {"3k-flash", {{256, 32, 8}, {32768, 8192, 2048}, {96, 24, 8}}},
      {"5k", {{64, 32, 16}, {32768, 16384, 4096}, {16, 8, 4}}},
  };
  return presets;
}

SelectorSettings HipSelector(const PaperPreset& preset) {
  SelectorSettings s{.name = SelectorName::kHip};
  s.params.selector = Selector::kHip;
  s.params.num_stages = 3;
  for (int i = 0; i < 3; ++i) {
    s.params.stages[i] = {.chunk_tokens = preset.chunk[i],
                          .keep_chunks = preset.keep[i] / preset.chunk[i],
                          .pool_rows = i < 2};
    s.refresh[i] = preset.refresh[i];
  }
  s.params.keep_blocks = preset.keep[2] / kBlockTokens;
  return s;
}

// Noise in scores and reuse both lose facts; four bits, the neighbours' scores and eight steps keep
// them all (docs/attention.md).
SelectorSettings ScanSelector() {
  SelectorSettings s{.name = SelectorName::kScan};
  s.params.selector = Selector::kScan;
  s.params.keep_blocks = 2048 / kBlockTokens;
  s.params.dilation = 1;
  s.refresh[0] = 8;
  return s;
}

SelectorSettings NamedSelector(SelectorName name) {
  switch (name) {
    case SelectorName::kHip:
      return HipSelector(PaperPresets().at("3k"));
    case SelectorName::kScan:
      return ScanSelector();
    case SelectorName::kWindow:
      break;
  }
  return {.name = SelectorName::kWindow};
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
  RETURN_IF_ERROR(InRange("budget", tokens, unit, 1 << 20, unit));
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

absl::Status Apply(const AttentionOverrides& o, AttentionSettings& s) {
  if (o.preset) {
    const AttentionMode mode = s.mode;
    const bool early = s.early;
    ASSIGN_OR_RETURN(s, Preset(*o.preset));
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
  if (o.budget) {
    RETURN_IF_ERROR(SetBudget(*o.budget, s.prefill));
    RETURN_IF_ERROR(SetBudget(*o.budget, s.decode));
  }
  if (!o.refresh.empty()) RETURN_IF_ERROR(SetRefresh(o.refresh, s.decode));
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

int32_t ClipDistance(const AttentionSettings& s) {
  const auto growth = static_cast<int32_t>(RoundUp(s.decode.refresh[0], kBlockTokens));
  return s.window + std::max(kClipMargin, growth + kBlockTokens);
}

// First position whose queries are sparse.
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

Positions PositionsAt(const AttentionSettings& s, int64_t last_position, int64_t trained_length) {
  switch (s.positions) {
    case PositionRule::kTrue:
      return Positions::kTrue;
    case PositionRule::kStreaming:
      return Positions::kStreaming;
    case PositionRule::kClipped:
      return Positions::kClipped;
    case PositionRule::kAuto:
      break;
  }
  return last_position < trained_length ? Positions::kTrue : Positions::kClipped;
}

// A query block's reads, given where its window is anchored.
void SetBounds(const AttentionSettings& s, int64_t anchor, QueryBlock& block) {
  const int64_t window_begin = RoundDown(std::max<int64_t>(anchor - s.window, 0), kBlockTokens);
  if (window_begin <= s.num_sinks) return;  // sinks and window cover everything
  block.num_sinks = s.num_sinks;
  block.window_begin = window_begin;
}

// Sinks and window that leave a model of short trained length most of it.
void FitTrainedLength(int64_t trained_length, AttentionSettings& s) {
  const auto at_most = [&](int32_t value, int64_t part, int64_t unit) {
    return static_cast<int32_t>(std::min<int64_t>(value, RoundDown(trained_length / part, unit)));
  };
  s.num_sinks = at_most(s.num_sinks, 16, kBlockTokens);
  s.window = std::max(at_most(s.window, 4, kPageTokens), kPageTokens);
  if (s.window + kClipMargin + kQueryBlockTokens > trained_length) s.mode = AttentionMode::kDense;
}

}  // namespace

std::vector<std::string_view> PresetNames() {
  std::vector<std::string_view> names = {"default"};
  for (const auto& [name, preset] : PaperPresets()) names.push_back(name);
  return names;
}

absl::StatusOr<AttentionSettings> Preset(std::string_view name) {
  AttentionSettings settings;
  if (name == "default") {
    settings.prefill = HipSelector(PaperPresets().at("3k"));
    settings.decode = ScanSelector();
    return settings;
  }
  const auto it = PaperPresets().find(name);
  if (it == PaperPresets().end()) {
    return absl::InvalidArgumentError(fmt::format("attention.preset: \"{}\" is none of {}", name,
                                                  fmt::join(PresetNames(), ", ")));
  }
  settings.prefill = settings.decode = HipSelector(it->second);
  settings.positions = PositionRule::kStreaming;
  return settings;
}

absl::StatusOr<AttentionPolicy> MakePolicy(const AttentionConfig& config, int32_t num_layers,
                                           int64_t trained_length) {
  AttentionPolicy policy{.layer_class = std::vector<int32_t>(num_layers, 0),
                         .trained_length = trained_length};
  ASSIGN_OR_RETURN(AttentionSettings base, Preset("default"));
  FitTrainedLength(trained_length, base);
  AttentionSettings early = base;
  early.early = true;
  RETURN_IF_ERROR(Apply(config.all, base));
  RETURN_IF_ERROR(Apply(config.all, early));
  policy.classes = {base, early};
  std::fill_n(policy.layer_class.begin(), std::min(num_layers, kEarlyLayers), 1);
  for (const auto& [layers, overrides] : config.layers) {
    for (const int32_t layer : layers) {
      RETURN_IF_ERROR(InRange("layers", layer, 0, num_layers - 1));
      AttentionSettings settings = policy.classes[policy.layer_class[layer]];
      RETURN_IF_ERROR(Apply(overrides, settings));
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
    RETURN_IF_ERROR(Apply(overrides, settings));
  }
  RETURN_IF_ERROR(Check(changed));
  return changed;
}

std::string PositionWarning(const AttentionPolicy& policy) {
  for (const AttentionSettings& s : policy.classes) {
    if (s.mode == AttentionMode::kDense || s.positions == PositionRule::kTrue) continue;
    const int64_t apparent = s.positions == PositionRule::kStreaming
                                 ? int64_t{s.num_sinks} + BudgetTokens(s) + s.window
                                 : ClipDistance(s);
    const auto sum = static_cast<double>(2 * apparent + kQueryBlockTokens);
    if (sum <= kPositionLaw * static_cast<double>(policy.trained_length)) continue;
    return fmt::format(
        "apparent position {} + apparent distance {} of far keys pass {} times the trained length "
        "{}: expect lost recall, or lower sinks, budget or window, or use positions clipped",
        apparent + kQueryBlockTokens, apparent, kPositionLaw, policy.trained_length);
  }
  return "";
}

bool MayBeSparse(const AttentionPolicy& policy, int64_t end_position) {
  return std::any_of(policy.classes.begin(), policy.classes.end(), [&](const auto& settings) {
    return SparseBegin(settings, policy.trained_length) < end_position;
  });
}

void PlanBuilder::Clear(int32_t first_prompt_slot) {
  blocks.clear();
  selects.clear();
  next_slot = first_prompt_slot;
}

void PlanBuilder::Add(const SequencePlan& plan, int32_t layer_class, int32_t sequence,
                      int32_t first_row, int64_t begin, int64_t end) {
  const AttentionSettings& settings = plan.policy->classes[layer_class];
  for (int64_t position = begin; position < end;) {
    const auto row = static_cast<int32_t>(first_row + (position - begin));
    const int64_t block_end =
        AddOne(plan, settings, {.sequence = sequence, .first_row = row}, position, end);
    position = block_end;
  }
}

// Appends the block that `begin` belongs to; returns where it ends.
int64_t PlanBuilder::AddOne(const SequencePlan& plan, const AttentionSettings& s, QueryBlock block,
                            int64_t begin, int64_t end) {
  const int64_t trained_length = plan.policy->trained_length;
  const int64_t sparse_begin = SparseBegin(s, trained_length);
  const bool sparse = begin >= sparse_begin;
  const bool decode = begin >= plan.decode_begin;
  const SelectorSettings& selector = decode ? s.decode : s.prefill;
  int64_t block_end = std::min(end, sparse_begin);
  int64_t step = 0;
  if (sparse) {
    const int64_t first = RoundDown(begin, kQueryBlockTokens);
    const int64_t decode_anchor = std::max(plan.decode_begin, sparse_begin);
    step = begin - decode_anchor;
    block_end = decode ? begin + 1 : std::min({first + kQueryBlockTokens, plan.decode_begin, end});
    SetBounds(s, decode ? begin - step % selector.refresh[0] : first, block);
  }
  block.num_rows = static_cast<int32_t>(block_end - begin);
  if (block.window_begin > 0) {
    block.positions =
        PositionsAt(s, decode ? begin : begin | (kQueryBlockTokens - 1), trained_length);
    block.clip_distance = ClipDistance(s);
    if (selector.name != SelectorName::kWindow) {
      SelectParams params = selector.params;
      params.distance = selector.name == SelectorName::kHip ? s.window : block.clip_distance;
      if (block_end == plan.decode_begin) {
        for (HipStage& stage : params.stages) stage.pool_rows = false;
      }
      block.slot = decode ? plan.slot : next_slot++;
      block.select = static_cast<int32_t>(selects.size());
      block.first = !decode || step == 0;
      while (decode && block.first_stage < selector.num_stages() &&
             step % selector.refresh[block.first_stage] != 0) {
        ++block.first_stage;
      }
      selects.push_back(params);
    }
  }
  blocks.push_back(block);
  return block_end;
}

AttentionPlan PlanBuilder::plan() const {
  return {.num_blocks = static_cast<int32_t>(blocks.size()),
          .num_selects = static_cast<int32_t>(selects.size()),
          .blocks = blocks.data(),
          .selects = selects.data()};
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

StepUse UseAt(const SequencePlan& plan, int64_t position) {
  StepUse use{.attended_ratio = 0.0};
  std::vector<double> ratios;
  for (size_t i = 0; i < plan.policy->classes.size(); ++i) {
    PlanBuilder builder;
    builder.Add(plan, static_cast<int32_t>(i), 0, 0, position, position + 1);
    const QueryBlock& block = builder.blocks[0];
    int64_t selected = 0;
    if (block.select >= 0) {
      const SelectParams& params = builder.selects[block.select];
      const int64_t candidates = block.window_begin - block.num_sinks;
      selected = std::min(candidates, int64_t{params.keep_blocks} * kBlockTokens);
      if (use.num_stages == 0) {
        use.first_stage = block.first_stage;
        use.num_stages = plan.policy->classes[i].decode.num_stages();
      }
    }
    const int64_t read = block.num_sinks + selected + position + 1 - block.window_begin;
    ratios.push_back(static_cast<double>(read) / static_cast<double>(position + 1));
  }
  const auto& layer_class = plan.policy->layer_class;
  for (const int32_t c : layer_class) use.attended_ratio += ratios[c] / layer_class.size();
  return use;
}

}  // namespace everlong
