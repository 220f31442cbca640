#include "tests/engine/tiny_model.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/hooked_kernels.h"

namespace everlong {
namespace {

// Decoded rows come out a little different, as where other kernels compute them.
class PhasedKernels final : public HookedKernels {
 public:
  PhasedKernels() : HookedKernels([] {}) {}
  void MatMul(const MatMulArgs& args) override {
    HookedKernels::MatMul(args);
    for (int64_t r = 0; r < args.decode_rows; ++r) {
      auto* row = static_cast<float*>(args.out) + r * args.out_stride;
      for (int64_t i = 0; i < args.w.rows; ++i) row[i] *= 1.0f + 0x1p-6f;
    }
  }
};

// The character that stands for a byte in byte-level vocabularies (GPT-2's printable alphabet).
std::string ByteCharacter(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

}  // namespace

std::string ByteTokenizerJson() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[ByteCharacter(byte)] = byte;
  const auto added = [](int id, const char* content) {
    return nlohmann::json{{"id", id},        {"content", content}, {"single_word", false},
                          {"lstrip", false}, {"rstrip", false},    {"normalized", false},
                          {"special", true}};
  };
  nlohmann::json byte_level = {{"type", "ByteLevel"},
                               {"add_prefix_space", false},
                               {"trim_offsets", true},
                               {"use_regex", true}};
  nlohmann::json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", {added(256, "<|end|>"), added(257, "<|mark|>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  return json.dump();
}

TinyCheckpoint::TinyCheckpoint(uint32_t seed, int64_t trained_length)
    : seed_(seed), tokenizer_json_(ByteTokenizerJson()) {
  config_.architecture = "LlamaForCausalLM";
  config_.vocab_size = kTinyVocab;
  config_.hidden_size = 32;
  config_.intermediate_size = 48;
  config_.num_layers = 2;
  config_.q_heads = 4;
  config_.kv_heads = 2;
  config_.head_dim = 8;
  config_.trained_length = trained_length;
  config_.tied_embeddings = true;
  config_.rotate.assign(2, true);
  for (int i = 0; i < 4; ++i) {
    config_.rope_inv_freq.push_back(static_cast<float>(std::pow(10000.0, -i / 4.0)));
  }
  config_.eos_ids = {kTinyEnd};
}

absl::StatusOr<HostMatrix> TinyCheckpoint::Tensor(std::string_view name, int64_t rows,
                                                  int64_t cols) const {
  auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    const bool norm = name.find("norm") != std::string_view::npos;
    std::seed_seq seeds{seed_, static_cast<uint32_t>(std::hash<std::string_view>{}(name))};
    std::mt19937 random(seeds);
    const double deviation =
        name == "model.embed_tokens.weight" ? 1.0 : 3.0 / std::sqrt(static_cast<double>(cols));
    std::normal_distribution<double> normal(0.0, deviation);
    std::vector<float> values(rows * cols);
    for (float& value : values) value = norm ? 1.0f : static_cast<float>(normal(random));
    it = tensors_.emplace(std::string(name), std::move(values)).first;
  }
  return HostMatrix{.data = it->second.data(), .rows = rows, .cols = cols, .type = DType::kF32};
}

void RecordingSink::OnEvent(Event event) {
  EXPECT_TRUE(terminal.empty()) << "an event after the terminal one";
  order.push_back(event.index());
  if (auto* e = std::get_if<AcceptedEvent>(&event)) accepted.push_back(*e);
  if (auto* e = std::get_if<PrefillEvent>(&event)) prefill.push_back(*e);
  if (auto* e = std::get_if<OutputEvent>(&event)) outputs.push_back(*e);
  if (auto* e = std::get_if<SampleFinishedEvent>(&event)) samples.push_back(*e);
  if (auto* e = std::get_if<FinishedEvent>(&event)) terminal.push_back(*e);
}

std::vector<int32_t> RecordingSink::tokens(int32_t sample) const {
  std::vector<int32_t> all;
  for (const OutputEvent& output : outputs) {
    if (output.sample != sample) continue;
    all.insert(all.end(), output.token_ids.begin(), output.token_ids.end());
  }
  return all;
}

std::string RecordingSink::text(int32_t sample) const {
  std::string all;
  for (const OutputEvent& output : outputs) {
    if (output.sample == sample) all += output.text;
  }
  return all;
}

std::unique_ptr<Kernels> MakeKernels(const std::string& name) {
  if (name == "phased") return std::make_unique<PhasedKernels>();
  return name == "cpu" ? MakeCpuKernels(2) : MakeReferenceKernels();
}

EngineOptions SmallOptions() {
  EngineOptions options;
  options.max_context = 1024;
  options.max_batch_tokens = 128;
  options.max_running = 8;
  options.kv_type = DType::kF32;
  options.kv_device_bytes = 64 * kTinyPageBytes;
  return options;
}

std::unique_ptr<Engine> MakeTinyEngine(EngineOptions options, std::unique_ptr<Kernels> kernels,
                                       uint32_t seed) {
  auto engine = Engine::Create(std::make_unique<TinyCheckpoint>(seed), std::move(kernels), options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t length) {
  std::mt19937 random(seed);
  std::vector<int32_t> prompt(length);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % 256);
  return prompt;
}

Request GreedyRequest(std::vector<int32_t> prompt, int64_t output) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0.0f;
  request.max_output_tokens = output;
  request.ignore_eos = true;
  return request;
}

std::shared_ptr<RecordingSink> SubmitTo(Engine& engine, Request request) {
  auto sink = std::make_shared<RecordingSink>();
  const auto id = engine.Submit(std::move(request), sink);
  EXPECT_TRUE(id.ok()) << id.status();
  return sink;
}

void RunToEnd(Engine& engine) {
  for (int step = 0; step < 100000; ++step) {
    if (!engine.Step() && engine.Idle()) return;
  }
  FAIL() << "the engine does not come to an end";
}

std::vector<std::shared_ptr<RecordingSink>> RunStaggered(Engine& engine,
                                                         const std::vector<Request>& requests) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const Request& request : requests) {
    sinks.push_back(SubmitTo(engine, request));
    engine.Step();
  }
  RunToEnd(engine);
  return sinks;
}

}  // namespace everlong
