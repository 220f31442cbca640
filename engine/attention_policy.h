// Which keys each query reads: settings, presets, and the pure functions that turn positions into
// the query blocks of a step. Algorithm: arXiv 2502.08910; our choices: docs/attention.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/args.h"

namespace everlong {

inline constexpr int32_t kQueryBlockTokens = 64;  // prompt tokens that share a selection

enum class AttentionMode : uint8_t { kAuto, kDense, kInfiniteHip };
enum class SelectorName : uint8_t { kHip, kScan, kWindow };
enum class PositionRule : uint8_t { kAuto, kTrue, kStreaming, kClipped };

// How one selector picks, and how long a decode step's picks are used.
struct SelectorSettings {
  SelectorName name = SelectorName::kScan;
  SelectParams params;  // distance and window-dependent parts are filled in per query block
  // Decode steps between runs of each stage, each a multiple of the next.
  std::array<int32_t, kMaxStages> refresh = {1, 1, 1, 1};

  int32_t num_stages() const { return name == SelectorName::kHip ? params.num_stages : 1; }
};

// Of the layers of one class.
struct AttentionSettings {
  AttentionMode mode = AttentionMode::kAuto;
  PositionRule positions = PositionRule::kAuto;
  int32_t num_sinks = 256;
  int32_t window = 1024;  // tokens before a query block that it always reads
  SelectorSettings prefill;
  SelectorSettings decode;
  bool early = false;  // the first layers: hip sees probes at their chunks' numbers
};

// What a configuration or a request may change.
struct AttentionOverrides {
  std::optional<AttentionMode> mode;
  std::optional<std::string> preset;
  std::optional<SelectorName> selector;  // of prefill and decode
  std::optional<PositionRule> positions;
  std::optional<int32_t> budget;     // k, tokens
  std::optional<int32_t> num_sinks;  // tokens
  std::optional<int32_t> window;     // tokens
  std::vector<int32_t> refresh;      // steps, coarsest stage first; empty: as it was

  bool IsEmpty() const {
    return !mode && !preset && !selector && !positions && !budget && !num_sinks && !window &&
           refresh.empty();
  }
};

// The server's configuration: for all layers, then for some.
struct AttentionConfig {
  AttentionOverrides all;
  std::vector<std::pair<std::vector<int32_t>, AttentionOverrides>> layers;
};

// Immutable once built; shared by all sequences that use it.
struct AttentionPolicy {
  std::vector<AttentionSettings> classes;  // at least one
  std::vector<int32_t> layer_class;        // [num_layers]
  int64_t trained_length = 0;
};

std::vector<std::string_view> PresetNames();

// The settings of a preset: "default", or the paper's "3k", "5k", "3k-fast" and "3k-flash".
// INVALID_ARGUMENT names the presets there are.
absl::StatusOr<AttentionSettings> Preset(std::string_view name);

// INVALID_ARGUMENT naming field, value and limit where settings are impossible.
absl::StatusOr<AttentionPolicy> MakePolicy(const AttentionConfig& config, int32_t num_layers,
                                           int64_t trained_length);

// `policy` with a request's wishes; layers that are dense by configuration stay dense.
absl::StatusOr<AttentionPolicy> Override(const AttentionPolicy& policy,
                                         const AttentionOverrides& overrides);

// Empty, or a sentence with both numbers where keys may be read further from where prefill saw them
// than the model bears: apparent position plus apparent distance beyond 1.25 trained lengths.
std::string PositionWarning(const AttentionPolicy& policy);

// Of one sequence: what its query blocks depend on besides their positions.
struct SequencePlan {
  const AttentionPolicy* policy = nullptr;
  int64_t decode_begin = 0;  // first position decoded by itself: the prompt's last token
  int32_t slot = 0;          // Selection slot of its decode steps
};

// Whether any query below `end_position` may be sparse. Such a sequence is read in prompt chunks
// that end at multiples of kQueryBlockTokens or at decode_begin, then token by token.
bool MayBeSparse(const AttentionPolicy& policy, int64_t end_position);

// What a step's plan for one layer class is made of; the vectors keep their capacity.
struct PlanBuilder {
  std::vector<QueryBlock> blocks;
  std::vector<SelectParams> selects;
  int32_t next_slot = 0;  // of prompt blocks, whose selections last for the step

  void Clear(int32_t first_prompt_slot);
  // Appends the query blocks of positions [begin, end) of sequence number `sequence`, the first of
  // them row `first_row` of the step. What a position gets does not depend on begin and end.
  void Add(const SequencePlan& plan, int32_t layer_class, int32_t sequence, int32_t first_row,
           int64_t begin, int64_t end);
  AttentionPlan plan() const;

 private:
  int64_t AddOne(const SequencePlan& plan, const AttentionSettings& settings, QueryBlock block,
                 int64_t begin, int64_t end);
};

// Entries of the longest list that any stage keeps.
int32_t SelectionCapacity(const AttentionPolicy& policy);

// What one decode step reads and refreshes, averaged over layers.
struct StepUse {
  double attended_ratio = 1.0;  // tokens read over tokens there
  int32_t first_stage = 0;      // stages [first_stage, num_stages) run, in the first sparse class
  int32_t num_stages = 0;
};
StepUse UseAt(const SequencePlan& plan, int64_t position);

}  // namespace everlong
