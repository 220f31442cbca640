// What a decode step allocates once every buffer has its size: nothing, on any thread.
#include <gtest/gtest.h>

#include "tests/count_allocations.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/host_index.h"
#include "tests/kernels/weights.h"

namespace everlong {
namespace {

constexpr int32_t kRows = 3;
constexpr int32_t kHeads = 4;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kHeadDim = 64;
constexpr int32_t kWidth = kHeads * kHeadDim;
constexpr int32_t kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int32_t kVocab = 1000;
constexpr int32_t kTop = 4;

// A layer of a model, and three sequences that decode: one in its first page, one that completes a
// page, and a long one.
class DecodeStep {
 public:
  explicit DecodeStep(Device& device)
      : device_(device),
        step_(random_, {{30, 1}, {127, 1}, {2000, 1}}, kVocab),
        cache_(DType::kBF16, kKvHeads, kHeadDim, step_.num_pages(), 1),
        index_(4, kKvHeads, kHeadDim, step_.num_pages(), 1),
        inv_freq_(InverseFrequencies(kHeadDim, 1.0)),
        embedding_(Weights(random_, DType::kQ8_0, {kVocab}, kWidth).LoadInto(device)),
        qkv_weights_(Weights(random_, DType::kQ4K, {kQkvWidth}, kWidth).LoadInto(device)),
        out_weights_(Weights(random_, DType::kBF16, {kWidth}, kWidth).LoadInto(device)),
        residual_(Floats(kRows * kWidth)),
        normed_(Floats(kRows * kWidth)),
        qkv_(Floats(kRows * kQkvWidth)),
        logits_(Floats(kRows * kVocab)) {
    FillCache(cache_, step_, 0, random_);
    cache_.shape.base = device.Place(cache_.bytes);
    index_.shape = index_.Place(device);
    selection_ = HostSelection(1, 1, kKvHeads, 40).Place(device);
    QueryBlock& longest = step_.blocks.back();
    longest.num_sinks = 64;
    longest.window_begin = 1024;
    longest.positions = Positions::kClipped;
    longest.clip_distance = 1024;
    longest.slot = 0;
    longest.select = 0;
  }

  void Run(const SampleParams& params) {
    StepLayout layout = step_.Layout();
    AttentionPlan plan = layout.plans[0];
    const SelectParams scan = {.keep_blocks = 40, .distance = 1024, .dilation = 1};
    plan.selects = &scan;
    plan.num_selects = 1;
    layout.plans = &plan;
    device_->BeginStep(layout);
    device_->Embed({.table = embedding_, .out = residual_});
    device_->RmsNorm({.x = residual_,
                      .weight = logits_,
                      .out = normed_,
                      .rows = kRows,
                      .width = kWidth,
                      .eps = 1e-5f});
    MatMul(qkv_weights_, normed_, qkv_, MatMulOut::kActivations);
    device_->StoreKv({.cache = cache_.shape, .qkv = qkv_, .q_heads = kHeads});
    device_->IndexKeys({.cache = cache_.shape, .index = index_.shape});
    device_->Select({.cache = cache_.shape,
                     .index = index_.shape,
                     .selection = selection_,
                     .rope = {.inv_freq = inv_freq_},
                     .q = qkv_,
                     .q_stride = kQkvWidth,
                     .q_heads = kHeads});
    device_->Attention({.cache = cache_.shape,
                        .selection = selection_,
                        .rope = {.inv_freq = inv_freq_},
                        .q = qkv_,
                        .out = normed_,
                        .q_stride = kQkvWidth,
                        .q_heads = kHeads,
                        .scale = 0.125f});
    MatMul(out_weights_, normed_, residual_, MatMulOut::kAddF32);
    device_->GatedActivation(
        {.gate_up = qkv_, .out = normed_, .rows = kRows, .width = kQkvWidth / 2});
    MatMul(embedding_, residual_, logits_, MatMulOut::kF32);
    Sample(params);
    device_->Sync();
  }

 private:
  float* Floats(int64_t count) { return device_.PlaceFloats(RandomValues(random_, count)); }

  void MatMul(const Matrix& w, const float* x, float* out, MatMulOut mode) {
    device_->MatMul({.w = w,
                     .x = x,
                     .out = out,
                     .x_stride = w.cols,
                     .out_stride = w.rows,
                     .rows = kRows,
                     .mode = mode});
  }

  void Sample(const SampleParams& params) {
    const SampleParams rows[kRows] = {params, params, params};
    const TokenAdjust adjusts[] = {{.token = 1, .bias = 1.0f}, {.token = 7, .bias = -1.0f}};
    int32_t tokens[kRows];
    float logprobs[kRows];
    int32_t top_tokens[kRows * kTop];
    float top_logprobs[kRows * kTop];
    device_->Sample({.logits = logits_,
                     .params = rows,
                     .adjusts = adjusts,
                     .tokens = tokens,
                     .logprobs = logprobs,
                     .top_tokens = top_tokens,
                     .top_logprobs = top_logprobs,
                     .rows = kRows,
                     .vocab = kVocab,
                     .max_top = kTop});
  }

  Device& device_;
  std::mt19937 random_{1};
  Step step_;
  HostCache cache_;
  HostIndex index_;
  Selection selection_;
  const float* inv_freq_;
  Matrix embedding_;
  Matrix qkv_weights_;
  Matrix out_weights_;
  float* residual_;
  float* normed_;
  float* qkv_;
  float* logits_;
};

class AllocationTest : public ::testing::TestWithParam<Backend> {};
INSTANTIATE_TEST_SUITE_P(Backends, AllocationTest, ::testing::ValuesIn(BackendsBesideReference()),
                         [](const auto& info) { return info.param.name; });

// What a row asks of the sampler must not matter: the first step asks for little.
TEST_P(AllocationTest, ADecodeStepAllocatesNothing) {
  Device device(GetParam());
  DecodeStep step(device);
  step.Run({.adjust_end = 2});
  const int64_t before = NumAllocations();
  step.Run({.adjust_end = 1});
  step.Run({.temperature = 1.0f, .top_p = 0.99f, .num_top = kTop, .adjust_end = 2});
  step.Run({.temperature = 1.0f, .top_k = 400});
  EXPECT_EQ(NumAllocations(), before);
}

}  // namespace
}  // namespace everlong
