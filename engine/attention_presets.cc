#include "engine/attention_presets.h"

#include <algorithm>
#include <map>

#include "fmt/format.h"

namespace everlong {
namespace {

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
  s.params.sieve = 8;
  s.refresh[0] = 8;
  return s;
}

// Sinks and window that leave a model of short trained length most of it; the window so that a
// token at the trained length's end may be read at clipped positions (PositionWarning).
void FitTrainedLength(int64_t trained_length, AttentionSettings& s) {
  const auto fit = [](int32_t value, int64_t limit, int64_t unit) {
    return static_cast<int32_t>(std::min<int64_t>(value, limit / unit * unit));
  };
  s.num_sinks = fit(s.num_sinks, trained_length / 16, kBlockTokens);
  s.window = fit(s.window, trained_length / 4 - kClipMargin, kPageTokens);
  if (s.window >= kPageTokens) return;
  s.window = kPageTokens;
  s.mode = AttentionMode::kDense;
}

}  // namespace

std::vector<std::string_view> PresetNames() {
  std::vector<std::string_view> names = {"default"};
  for (const auto& [name, preset] : PaperPresets()) names.push_back(name);
  return names;
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

absl::StatusOr<AttentionSettings> Preset(std::string_view name, int64_t trained_length) {
  AttentionSettings settings;
  if (name == "default") {
    settings.prefill = HipSelector(PaperPresets().at("3k"));
    settings.decode = ScanSelector();
    FitTrainedLength(trained_length, settings);
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

}  // namespace everlong
