// A random Llama model of a few thousand parameters, in memory, and sinks that record events.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/checkpoint.h"
#include "engine/engine.h"

namespace everlong {

// Byte-level tokenizer of 256 byte tokens plus "<|end|>" (id 256) and "<|mark|>" (id 257).
std::string ByteTokenizerJson();

inline constexpr int32_t kTinyVocab = 258;
inline constexpr int32_t kTinyEnd = 256;

// Weights are drawn from `seed`, large enough that greedy outputs vary from token to token.
class TinyCheckpoint : public Checkpoint {
 public:
  explicit TinyCheckpoint(uint32_t seed, int64_t trained_length = 4096);

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<HostMatrix> Tensor(std::string_view name, int64_t rows,
                                    int64_t cols) const override;
  const std::string& tokenizer_json() const override { return tokenizer_json_; }
  const std::string& chat_template() const override { return chat_template_; }

 private:
  uint32_t seed_;
  ModelConfig config_;
  std::string tokenizer_json_;
  std::string chat_template_;
  mutable std::map<std::string, std::vector<float>, std::less<>> tensors_;
};

// Keeps everything it is told.
struct RecordingSink : EventSink {
  void OnEvent(Event event) override;
  bool Backlogged() const override { return backlogged; }

  bool finished() const { return !terminal.empty(); }
  const FinishedEvent& end() const { return terminal.at(0); }
  std::vector<int32_t> tokens(int32_t sample = 0) const;
  std::string text(int32_t sample = 0) const;

  bool backlogged = false;
  std::vector<AcceptedEvent> accepted;
  std::vector<PrefillEvent> prefill;
  std::vector<OutputEvent> outputs;
  std::vector<SampleFinishedEvent> samples;
  std::vector<FinishedEvent> terminal;
  std::vector<size_t> order;  // Event::index of each event
};

// "cpu", with two threads, "reference", or "phased", which rounds decoded tokens otherwise than
// prompts.
std::unique_ptr<Kernels> MakeKernels(const std::string& name);

// Pages of the tiny model: 2 layers, 2 KV heads, 64 tokens, K and V of 8 f32 each.
inline constexpr int64_t kTinyPageBytes = int64_t{2} * 2 * 64 * 2 * 8 * 4;

// 64 pages for contexts of up to 1024 tokens.
EngineOptions SmallOptions();

std::unique_ptr<Engine> MakeTinyEngine(EngineOptions options, std::unique_ptr<Kernels> kernels,
                                       uint32_t seed = 1);

// `length` tokens drawn from `seed`.
std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t length);

// A greedy request for exactly `output` tokens.
Request GreedyRequest(std::vector<int32_t> prompt, int64_t output);

// The test goes on where the engine refuses the request, but fails.
std::shared_ptr<RecordingSink> SubmitTo(Engine& engine, Request request);

// Steps until the engine has nothing to do; fails the test past a bound.
void RunToEnd(Engine& engine);

// Submits a request a step, so that they are at different places, and runs all to their ends.
std::vector<std::shared_ptr<RecordingSink>> RunStaggered(Engine& engine,
                                                         const std::vector<Request>& requests);

}  // namespace everlong
