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
// By which clipped keys are further than a window's first: it grows between refreshes, and far keys
// must never be nearer than near ones.
inline constexpr int32_t kClipMargin = 64;

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

// A stage of hip, in tokens.
struct StageSettings {
  int32_t chunk = 0;  // a power of two times kBlockTokens, shrinking from stage to stage
  int32_t keep = 0;   // a multiple of chunk, no more than the stage before keeps
  bool every_key = false;
  bool pool_rows = false;
  bool operator==(const StageSettings&) const = default;
};

// What a configuration or a request may change.
struct AttentionOverrides {
  std::optional<AttentionMode> mode;
  std::optional<std::string> preset;
  std::optional<SelectorName> selector;  // of prefill and decode
  std::optional<PositionRule> positions;
  std::optional<int32_t> budget;      // k, tokens
  std::optional<int32_t> num_sinks;   // tokens
  std::optional<int32_t> window;      // tokens
  std::vector<int32_t> refresh;       // steps, coarsest stage first; empty: as it was
  std::vector<StageSettings> stages;  // of hip, coarsest first; empty: as they were
  std::optional<bool> last_probe;     // of hip: SelectParams::last_probe
  std::optional<int32_t> dilation;    // of scan, blocks
  std::optional<int32_t> rerank;      // of scan, times the budget
  std::optional<int32_t> sieve;       // of scan, pages of which about one is scanned
  std::optional<bool> all_heads;      // SelectParams::all_heads

  bool operator==(const AttentionOverrides&) const = default;
  bool IsEmpty() const { return *this == AttentionOverrides(); }
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

// INVALID_ARGUMENT naming field, value and limit where settings are impossible.
absl::StatusOr<AttentionPolicy> MakePolicy(const AttentionConfig& config, int32_t num_layers,
                                           int64_t trained_length);

// `policy` with a request's wishes; layers that are dense by configuration stay dense.
absl::StatusOr<AttentionPolicy> Override(const AttentionPolicy& policy,
                                         const AttentionOverrides& overrides);

// Empty, or a sentence with both numbers where keys may be read further from where the prompt's
// reading saw them than the model bears: apparent position plus apparent distance beyond 1.25
// trained lengths.
std::string PositionWarning(const AttentionPolicy& policy);

// First position whose queries are sparse.
int64_t SparseBegin(const AttentionSettings& settings, int64_t trained_length);

// Whether any query below `end_position` may be sparse. Such a sequence is read in prompt chunks
// that end at multiples of kQueryBlockTokens or at decode_begin, then token by token.
bool MayBeSparse(const AttentionPolicy& policy, int64_t end_position);

// At which clipped positions see the keys before the window.
int32_t ClipDistance(const AttentionSettings& settings);

// Entries of the longest list that any stage keeps.
int32_t SelectionCapacity(const AttentionPolicy& policy);

}  // namespace everlong
