#include "engine/synthetic_checkpoint.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/status.h"
#include "engine/text.h"
#include "fmt/format.h"
#include "kernels/dtype.h"
#include "nlohmann/json.hpp"

namespace everlong {
namespace {

using nlohmann::json;

struct Geometry {
  std::string_view name;
  std::string_view config;  // of the config.json, what counts here
};

constexpr Geometry kGeometries[] = {
    {"llama-3.1-8b", R"({
      "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
      "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
      "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
      "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})"},
    {"llama-3.2-1b", R"({
      "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048,
      "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
      "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
      "tie_word_embeddings": true, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3",
      "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}})"},
    {"qwen3-8b", R"({
      "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
      "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
      "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
      "rms_norm_eps": 1e-6, "rope_theta": 1000000.0})"},
    {"smollm2-135m", R"({
      "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
      "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
      "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
      "tie_word_embeddings": true, "rope_theta": 100000.0})"},
};

// How random bytes become weights around 0. Quantised: `scale_at` and `minimum_at` (-1: none) say
// where in a block f16 factors stand; with a scale of 1 weights deviate by `deviation` and lie
// around `middle`, so that the minimum is to take off so much.
struct TypeForm {
  std::string_view name;
  DType type;
  double deviation = 1.0;
  double middle = 0.0;
  int scale_at = 0;
  int minimum_at = -1;
  bool subtracts_minimum = false;
};

constexpr TypeForm kTypes[] = {
    {"f32", DType::kF32},  // of vectors too
    {"f16", DType::kF16},
    {"bf16", DType::kBF16},
    {"q8_0", DType::kQ8_0, 74.0},
    {"q4_0", DType::kQ4_0, 4.6},
    {"q4_1", DType::kQ4_1, 4.6, 7.5, 0, 2},
    {"q5_0", DType::kQ5_0, 9.2},
    {"q5_1", DType::kQ5_1, 9.2, 15.5, 0, 2},
    {"q4_k", DType::kQ4K, 250.0, 7.5, 0, 2, true},
    {"q5_k", DType::kQ5K, 500.0, 15.5, 0, 2, true},
    {"q6_k", DType::kQ6K, 1300.0, 0.0, 208},
};

struct Options {
  const Geometry* geometry = nullptr;
  const TypeForm* form = nullptr;
  std::optional<int64_t> layers;
};

template <typename Known>
absl::StatusOr<const Known*> Find(std::span<const Known> all, std::string_view what,
                                  std::string_view name) {
  std::vector<std::string_view> names;
  for (const Known& known : all) {
    if (known.name == name) return &known;
    names.push_back(known.name);
  }
  return absl::InvalidArgumentError(
      fmt::format("{} \"{}\": there are {}", what, name, fmt::join(names, ", ")));
}

absl::Status ReadOption(std::string_view option, Options& options) {
  const size_t equals = std::min(option.find('='), option.size());
  const std::string_view key = option.substr(0, equals);
  const std::string_view value = option.substr(std::min(equals + 1, option.size()));
  if (key == "type") {
    ASSIGN_OR_RETURN(options.form, Find<TypeForm>(kTypes, "type", value));
    return absl::OkStatus();
  }
  const char* const end = value.data() + value.size();
  const auto parsed = std::from_chars(value.data(), end, options.layers.emplace(0));
  if (key == "layers" && parsed.ec == std::errc() && parsed.ptr == end) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("\"{}\" is neither layers=NUMBER nor type=TYPE", option));
}

absl::StatusOr<Options> ReadOptions(std::string_view name) {
  Options options;
  ASSIGN_OR_RETURN(options.form, Find<TypeForm>(kTypes, "type", "bf16"));
  const size_t end = std::min(name.find(','), name.size());
  ASSIGN_OR_RETURN(options.geometry, Find<Geometry>(kGeometries, "geometry", name.substr(0, end)));
  for (size_t begin = end; begin < name.size();) {
    const size_t next = std::min(name.find(',', begin + 1), name.size());
    RETURN_IF_ERROR(ReadOption(name.substr(begin + 1, next - begin - 1), options));
    begin = next;
  }
  return options;
}

// A token for each byte, which is its id.
std::string ByteTokenizer() {
  json vocabulary = json::object();
  for (char32_t code_point = 0; vocabulary.size() < 256; ++code_point) {
    std::string text;
    AppendUtf8(code_point, &text);
    const auto bytes = BytesFromAlphabet(text);
    if (bytes) vocabulary[text] = static_cast<uint8_t>((*bytes)[0]);
  }
  const json part = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return json{{"pre_tokenizer", part},
              {"decoder", part},
              {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}}
      .dump();
}

// FNV-1a.
uint64_t Hash(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return hash;
}

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. Of each 64 bits
// those in `kept` stay random, the others are those of `fixed`.
void FillRandom(uint64_t kept, uint64_t fixed, std::span<std::byte> bytes) {
  uint64_t state = 0;
  for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    uint64_t bits = state += 0x9E3779B97F4A7C15;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB;
    bits = ((bits ^ bits >> 31) & kept) | fixed;
    std::memcpy(bytes.data() + at, &bits, 8);
  }
}

// Random signs and mantissas for f32, f16 or bf16 elements, and the exponent of `value`.
template <typename Bits>
void FillPlain(Bits value, int mantissa_bits, std::span<std::byte> bytes) {
  constexpr int kBits = 8 * sizeof(Bits);
  constexpr uint64_t kEvery = ~uint64_t{0} / ((uint64_t{1} << kBits) - 1);  // 1 in each element
  const uint64_t mantissa = (uint64_t{1} << mantissa_bits) - 1;
  FillRandom((uint64_t{1} << (kBits - 1) | mantissa) * kEvery, (value & ~mantissa) * kEvery, bytes);
}

void SetFactors(const TypeForm& form, float deviation, std::span<std::byte> bytes) {
  const auto step = static_cast<float>(deviation / form.deviation);
  const uint16_t scale = F32ToF16(step);
  const auto middle = static_cast<float>(form.middle) * F16ToF32(scale);
  const uint16_t minimum = F32ToF16(form.subtracts_minimum ? middle : -middle);
  const auto block = static_cast<size_t>(BlockOf(form.type).bytes);
  for (size_t at = 0; at + block <= bytes.size(); at += block) {
    std::memcpy(bytes.data() + at + form.scale_at, &scale, sizeof(scale));
    if (form.minimum_at < 0) continue;
    std::memcpy(bytes.data() + at + form.minimum_at, &minimum, sizeof(minimum));
  }
}

void FillWeights(const TypeForm& form, float deviation, std::span<std::byte> bytes) {
  switch (form.type) {
    case DType::kF32:
      return FillPlain(std::bit_cast<uint32_t>(deviation), 23, bytes);
    case DType::kF16:
      return FillPlain(F32ToF16(deviation), 10, bytes);
    case DType::kBF16:
      return FillPlain(F32ToBF16(deviation), 7, bytes);
    default:
      FillRandom(~uint64_t{0}, 0, bytes);
      SetFactors(form, deviation, bytes);
  }
}

// Weights of all tensors of a type and deviation: each begins at one of kPlaces in the same bytes,
// since 8 billion weights would take longer to make than to load.
class WeightPool {
 public:
  WeightPool(const TypeForm& form, float deviation) : form_(form), deviation_(deviation) {}

  // Weights for a tensor of that name and so many bytes, and what keeps them alive. A pool that has
  // to grow begins as before.
  std::shared_ptr<const std::byte> Get(std::string_view name, int64_t bytes) {
    constexpr int64_t kPlaces = 1024;
    const int64_t step = 32 * BlockOf(form_.type).bytes;
    if (const int64_t needed = bytes + kPlaces * step; needed > size_) {
      size_ = (needed + 7) / 8 * 8;
      bytes_ = std::shared_ptr<std::byte[]>(new std::byte[size_]);
      FillWeights(form_, deviation_, {bytes_.get(), static_cast<size_t>(size_)});
    }
    const auto place = static_cast<int64_t>(Hash(name) % kPlaces);
    return {bytes_, bytes_.get() + place * step};
  }

 private:
  const TypeForm& form_;
  const float deviation_;
  std::shared_ptr<std::byte[]> bytes_;
  int64_t size_ = 0;
};

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(ModelConfig config, const TypeForm& form)
      : config_(std::move(config)), form_(form), tokenizer_json_(ByteTokenizer()) {}

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<HostMatrix> Tensor(std::string_view name, int64_t rows,
                                    int64_t cols) const override;
  const std::string& tokenizer_json() const override { return tokenizer_json_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  ModelConfig config_;
  const TypeForm& form_;
  std::string tokenizer_json_;
  std::string chat_template_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<DType, float>, WeightPool> pools_;  // guarded by mutex_
};

// Weights of a matrix deviate by about 1 / sqrt(cols), so that activations keep their size.
absl::StatusOr<HostMatrix> SyntheticCheckpoint::Tensor(std::string_view name, int64_t rows,
                                                       int64_t cols) const {
  const bool is_vector = rows == 1;
  const TypeForm& form = is_vector ? kTypes[0] : form_;
  if (cols % BlockOf(form.type).elements != 0) {
    return absl::InvalidArgumentError(fmt::format(
        "tensor \"{}\": rows of {} are no multiple of {}'s block", name, cols, form.name));
  }
  const float deviation = is_vector ? 1.0f : 1.0f / std::sqrt(static_cast<float>(cols));
  const std::lock_guard lock(mutex_);
  const std::pair key(form.type, deviation);
  WeightPool& pool = pools_.try_emplace(key, form, deviation).first->second;
  auto weights = pool.Get(name, rows * RowBytes(form.type, cols));
  return HostMatrix{.data = weights.get(),
                    .rows = rows,
                    .cols = cols,
                    .type = form.type,
                    .owner = std::move(weights)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSynthetic(std::string_view name) {
  const auto options = ReadOptions(name.substr(kSyntheticPrefix.size()));
  if (!options.ok()) return Annotate(name, options.status());
  ASSIGN_OR_RETURN(json config_json, ParseJsonObject(options->geometry->config));
  if (options->layers) config_json["num_hidden_layers"] = *options->layers;
  JsonObject fields(config_json, std::string(name), {{"num_hidden_layers", "layers"}});
  ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(fields));
  return std::make_unique<SyntheticCheckpoint>(std::move(config), *options->form);
}

}  // namespace everlong
