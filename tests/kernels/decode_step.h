// A layer of a model that decodes: every operation of a decode step.
#pragma once

#include <random>
#include <vector>

#include "tests/kernels/device.h"
#include "tests/kernels/host_index.h"
#include "tests/kernels/selection.h"
#include "tests/kernels/step.h"

namespace everlong {

// What a step finds: sequences of one token each, keys in every page of a pool that is larger than
// they need, and their index. Contexts of 1024 tokens or more select, in turns by scanning,
// probing and scanning what a sieve leaves.
struct DecodeInputs {
  static constexpr int32_t kHeads = 4;
  static constexpr int32_t kKvHeads = 2;
  static constexpr int32_t kHeadDim = 64;
  static constexpr int32_t kVocab = 1000;

  DecodeInputs(DType kv_type, const std::vector<int64_t>& contexts);

  // One token further, after other tokens in other pages.
  void Advance();

  std::mt19937 random{1};
  Step step;
  HostCache cache;
  HostIndex index;
  HostSelection selection;

 private:
  DecodeInputs(DType kv_type, const std::vector<int64_t>& contexts, const Step& pool);
  void PlanBlocks();

  std::vector<int32_t> pool_;  // all pages
};

class DecodeStep {
 public:
  static constexpr int32_t kTop = 4;

  // The kernels keep the weights; the rest stays until device.FreePlaced.
  DecodeStep(Device& device, const DecodeInputs& inputs);

  // Takes the place of the inputs before; there are as many sequences, in as large a pool.
  void Put(const DecodeInputs& inputs);
  // Allocates nothing itself.
  void Run(const SampleParams& params);

  struct Outcome {
    std::vector<std::byte> cache;
    HostIndex index;
    std::vector<std::vector<int32_t>> selected;
    Values residual;
    std::vector<int32_t> tokens;
    Values logprobs;
    std::vector<int32_t> top_tokens;
    Values top_logprobs;
  };
  Outcome Read();

 private:
  float* Floats(int64_t count) { return device_.PlaceFloats(Values(count)); }
  void* Activations(int64_t count) { return device_.PlaceActivations(Values(count)); }
  void MatMul(const Matrix& w, const void* x, void* out, MatMulOut mode);
  void Attend();
  void Sample(const SampleParams& params);

  Device& device_;
  std::mt19937 random_{2};
  DecodeInputs inputs_;
  int32_t rows_;
  KvCache cache_;
  KeyIndex index_;
  Selection selection_;
  const float* inv_freq_;
  Matrix embedding_;
  Matrix qkv_weights_;
  Matrix out_weights_;
  Matrix logit_weights_;
  float* norm_weight_;
  float* residual_;
  void* normed_;
  void* qkv_;
  void* gated_;
  float* logits_;
  std::vector<SampleParams> params_;
  std::vector<int32_t> tokens_;
  Values logprobs_;
  std::vector<int32_t> top_tokens_;
  Values top_logprobs_;
};

}  // namespace everlong
