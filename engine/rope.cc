#include "engine/rope.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "fmt/format.h"

namespace everlong {
namespace {

constexpr double kTwoPi = 6.283185307179586;
constexpr NumberRange kPositive = {1e-6, 1e9};
constexpr NumberRange kAtLeastOne = {1.0, 1e9};
constexpr IntRange kLengths = {1, int64_t{1} << 40};

// Wavelengths below trained / high_freq_factor stay, those above trained / low_freq_factor are
// stretched by `factor`, those between are blended (Llama 3.1).
void StretchLlama3(JsonObject& scaling, int64_t trained, std::vector<double>& inv_freq) {
  const double factor = scaling.Number("factor", kAtLeastOne);
  const double low = scaling.Number("low_freq_factor", kPositive);
  const double high = scaling.Number("high_freq_factor", kPositive);
  if (high <= low) {
    scaling.Refuse("high_freq_factor", fmt::format("it must exceed low_freq_factor {}", low));
    return;
  }
  for (double& frequency : inv_freq) {
    const double turns = static_cast<double>(trained) * frequency / kTwoPi;
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    frequency *= kept + (1.0 - kept) / factor;
  }
}

// The (fractional) dimension pair that turns `turns` times over `trained` positions.
double PairOfTurns(double turns, int64_t head_dim, double theta, int64_t trained) {
  return static_cast<double>(head_dim) * std::log(static_cast<double>(trained) / (turns * kTwoPi)) /
         (2.0 * std::log(theta));
}

// "YaRN: Efficient Context Window Extension of Large Language Models", section 3.4: pairs that turn
// less than beta_slow times are stretched, those that turn more than beta_fast times stay. Returns
// the scale of rotated queries and keys.
double StretchYarn(JsonObject& scaling, const RopeContext& context, int64_t trained, double theta,
                   std::vector<double>& inv_freq) {
  const double factor = scaling.Number(
      "factor", kAtLeastOne,
      std::max(1.0, static_cast<double>(context.trained_length) / static_cast<double>(trained)));
  const double beta_fast = scaling.Number("beta_fast", kPositive, 32.0);
  const double beta_slow = scaling.Number("beta_slow", kPositive, 1.0);
  double first = PairOfTurns(beta_fast, context.head_dim, theta, trained);
  double last = PairOfTurns(beta_slow, context.head_dim, theta, trained);
  if (scaling.Bool("truncate", true)) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, static_cast<double>(context.head_dim - 1));
  if (first == last) last += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double stretched =
        std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
    inv_freq[i] *= 1.0 - stretched + stretched / factor;
  }

  const double log_factor = 0.1 * std::log(factor);
  const double mscale = scaling.Number("mscale", {0.0, 1e3}, 0.0);
  const double mscale_all_dim = scaling.Number("mscale_all_dim", {0.0, 1e3}, 0.0);
  const double inferred = mscale > 0.0 && mscale_all_dim > 0.0
                              ? (mscale * log_factor + 1.0) / (mscale_all_dim * log_factor + 1.0)
                              : log_factor + 1.0;
  return scaling.Number("attention_factor", {1e-3, 1e3}, inferred);
}

void RefusePartialRotation(JsonObject& fields) {
  if (fields.Number("partial_rotary_factor", {0.0, 1.0}, 1.0) != 1.0) {
    fields.Refuse("partial_rotary_factor", "only 1 (every dimension is rotated) is supported");
  }
}

// Frequencies before and after scaling; `scaling` holds the scaling's own keys.
RopeFrequencies Frequencies(JsonObject& scaling, const RopeContext& context, int64_t trained,
                            double theta) {
  std::vector<double> inv_freq;
  for (int64_t i = 0; i < context.head_dim; i += 2) {
    inv_freq.push_back(
        std::pow(theta, -static_cast<double>(i) / static_cast<double>(context.head_dim)));
  }
  double scale = 1.0;
  const std::string_view key = scaling.Find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string type = scaling.String(key, "default");
  if (type == "linear") {
    const double factor = scaling.Number("factor", kAtLeastOne);
    for (double& frequency : inv_freq) frequency /= factor;
  } else if (type == "llama3") {
    StretchLlama3(scaling, trained, inv_freq);
  } else if (type == "yarn") {
    scale = StretchYarn(scaling, context, trained, theta, inv_freq);
  } else if (type != "default") {
    scaling.Refuse(key, "supported are default, linear, llama3 and yarn");
  }
  return {.inv_freq = {inv_freq.begin(), inv_freq.end()}, .scale = static_cast<float>(scale)};
}

}  // namespace

RopeFrequencies ReadRope(JsonObject& config, const RopeContext& context) {
  RefusePartialRotation(config);
  const std::string_view key =
      config.Find("rope_scaling") != nullptr ? "rope_scaling" : "rope_parameters";
  const nlohmann::json none = nlohmann::json::object();
  const nlohmann::json* given = config.Find(key);
  if (given == nullptr) given = &none;
  if (!given->is_object()) {
    config.Refuse(key, "it must be an object");
    return {};
  }
  for (const auto& [name, value] : given->items()) {
    if (value.is_object()) config.Refuse(key, "one for every kind of layer is not supported");
  }
  JsonObject scaling(*given, fmt::format("{}: {}", config.where(), key));
  RefusePartialRotation(scaling);
  // As in transformers, the inner theta counts, but the outer original length.
  constexpr NumberRange kThetas = {1.001, 1e15};
  const double theta = scaling.Number("rope_theta", kThetas,
                                      config.Number("rope_theta", kThetas, context.default_theta));
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  const int64_t trained =
      config.Int(kOriginal, kLengths, scaling.Int(kOriginal, kLengths, context.trained_length));
  RopeFrequencies rope = Frequencies(scaling, context, trained, theta);
  config.Adopt(scaling.status());
  return rope;
}

}  // namespace everlong
