#include "tests/kernels/decode_step.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/weights.h"

namespace everlong {
namespace {

constexpr int32_t kWidth = DecodeInputs::kHeads * DecodeInputs::kHeadDim;
constexpr int32_t kQkvWidth =
    (DecodeInputs::kHeads + 2 * DecodeInputs::kKvHeads) * DecodeInputs::kHeadDim;
constexpr int32_t kKeepBlocks = 40;
constexpr int64_t kWindow = 200;

const SelectParams kSelects[] = {
    {.keep_blocks = kKeepBlocks, .distance = 1024, .dilation = 1},
    {.selector = Selector::kHip,
     .keep_blocks = kKeepBlocks,
     .distance = kWindow,
     .num_stages = 2,
     .stages = {{.chunk_tokens = 64, .keep_chunks = 9, .pool_rows = true},
                {.chunk_tokens = 8, .keep_chunks = kKeepBlocks}}},
    {.keep_blocks = 4, .distance = 1024, .sieve = 3}};

std::vector<SequenceShape> Decoded(const std::vector<int64_t>& contexts) {
  std::vector<SequenceShape> shapes;
  for (const int64_t context : contexts) shapes.push_back({context, 1});
  return shapes;
}

// One sequence in every page of a pool for `contexts` and their next tokens.
Step Pool(const std::vector<int64_t>& contexts) {
  int64_t pages = 0;
  for (const int64_t context : contexts) pages += context / kPageTokens + 3;
  std::mt19937 random(3);
  return Step(random, {{0, pages * kPageTokens}});
}

}  // namespace

DecodeInputs::DecodeInputs(DType kv_type, const std::vector<int64_t>& contexts)
    : DecodeInputs(kv_type, contexts, Pool(contexts)) {}

DecodeInputs::DecodeInputs(DType kv_type, const std::vector<int64_t>& contexts, const Step& pool)
    : step(random, Decoded(contexts), kVocab),
      cache(kv_type, kKvHeads, kHeadDim, pool.num_pages(), 1),
      index(4, kKvHeads, kHeadDim, pool.num_pages(), 1),
      selection(1, static_cast<int32_t>(contexts.size()), kKvHeads, kKeepBlocks),
      pool_(pool.pages) {
  FillCache(cache, pool, 0, random);
  index = HostIndex::Of(cache, pool, 4, 1, 0);
  step.num_decode = step.num_tokens();
  step.output_rows.resize(step.num_tokens());
  std::iota(step.output_rows.begin(), step.output_rows.end(), 0);
  PlanBlocks();
}

void DecodeInputs::Advance() {
  std::shuffle(pool_.begin(), pool_.end(), random);
  step.pages.clear();
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    step.tokens[s] = static_cast<int32_t>(random() % kVocab);
    const int64_t pages = ++step.context_begin[s] / kPageTokens + 1;
    const auto from = pool_.begin() + step.page_begin[s];
    step.pages.insert(step.pages.end(), from, from + pages);
    step.page_begin[s + 1] = step.num_pages();
  }
  PlanBlocks();
}

void DecodeInputs::PlanBlocks() {
  int32_t num_slots = 0;
  for (QueryBlock& block : step.blocks) {
    const int64_t position = step.context_begin[block.sequence];
    if (position < 1024) continue;
    block.num_sinks = 64;
    block.window_begin = (position - kWindow) / 8 * 8;
    block.positions = Positions::kClipped;
    block.clip_distance = 1024;
    block.slot = num_slots;
    block.select = num_slots++ % 3;
  }
}

DecodeStep::DecodeStep(Device& device, const DecodeInputs& inputs)
    : device_(device),
      inputs_(inputs),
      rows_(inputs.step.num_tokens()),
      cache_(inputs.cache.shape),
      index_(inputs.index.Place(device)),
      selection_(inputs.selection.Place(device)),
      inv_freq_(InverseFrequencies(DecodeInputs::kHeadDim, 1.0)),
      embedding_(Weights(random_, DType::kQ8_0, {DecodeInputs::kVocab}, kWidth).LoadInto(device)),
      qkv_weights_(Weights(random_, DType::kQ4K, {kQkvWidth}, kWidth).LoadInto(device)),
      out_weights_(Weights(random_, DType::kBF16, {kWidth}, kWidth).LoadInto(device)),
      logit_weights_(
          Weights(random_, DType::kBF16, {DecodeInputs::kVocab}, kQkvWidth / 2).LoadInto(device)),
      norm_weight_(device.PlaceFloats(RandomValues(random_, kWidth))),
      residual_(Floats(rows_ * kWidth)),
      normed_(Activations(rows_ * kWidth)),
      qkv_(Activations(rows_ * kQkvWidth)),
      gated_(Activations(rows_ * kQkvWidth / 2)),
      logits_(Floats(rows_ * DecodeInputs::kVocab)),
      params_(rows_),
      tokens_(rows_),
      logprobs_(rows_),
      top_tokens_(rows_ * kTop),
      top_logprobs_(rows_ * kTop) {
  cache_.base = device.Place(inputs.cache.bytes);
}

void DecodeStep::Put(const DecodeInputs& inputs) {
  inputs_ = inputs;
  const auto upload = [&](void* to, const std::vector<std::byte>& from) {
    device_->Upload(to, from.data(), static_cast<int64_t>(from.size()));
  };
  upload(cache_.base, inputs.cache.bytes);
  upload(index_.base, inputs.index.bytes);
  upload(index_.ranges, inputs.index.range_bytes);
}

void DecodeStep::Run(const SampleParams& params) {
  StepLayout layout = inputs_.step.Layout();
  AttentionPlan plan = layout.plans[0];
  plan.selects = kSelects;
  plan.num_selects = 3;
  layout.plans = &plan;
  device_->BeginStep(layout);
  device_->Embed({.table = embedding_, .out = residual_});
  device_->RmsNorm({.x = residual_,
                    .weight = norm_weight_,
                    .out = normed_,
                    .rows = rows_,
                    .width = kWidth,
                    .eps = 1e-5f});
  MatMul(qkv_weights_, normed_, qkv_, MatMulOut::kActivations);
  Attend();
  MatMul(out_weights_, normed_, residual_, MatMulOut::kAddF32);
  device_->GatedActivation({.gate_up = qkv_, .out = gated_, .rows = rows_, .width = kQkvWidth / 2});
  MatMul(logit_weights_, gated_, logits_, MatMulOut::kF32);
  Sample(params);
  device_->Sync();
}

void DecodeStep::MatMul(const Matrix& w, const void* x, void* out, MatMulOut mode) {
  device_->MatMul({.w = w,
                   .x = x,
                   .out = out,
                   .x_stride = w.cols,
                   .out_stride = w.rows,
                   .rows = rows_,
                   .decode_rows = rows_,
                   .mode = mode});
}

void DecodeStep::Attend() {
  device_->StoreKv({.cache = cache_, .qkv = qkv_, .q_heads = DecodeInputs::kHeads});
  device_->IndexKeys({.cache = cache_, .index = index_});
  device_->Select({.cache = cache_,
                   .index = index_,
                   .selection = selection_,
                   .rope = {.inv_freq = inv_freq_},
                   .q = qkv_,
                   .q_stride = kQkvWidth,
                   .q_heads = DecodeInputs::kHeads});
  device_->Attention({.cache = cache_,
                      .selection = selection_,
                      .rope = {.inv_freq = inv_freq_},
                      .q = qkv_,
                      .out = normed_,
                      .q_stride = kQkvWidth,
                      .q_heads = DecodeInputs::kHeads,
                      .scale = 0.125f});
}

void DecodeStep::Sample(const SampleParams& params) {
  static const TokenAdjust adjusts[] = {{.token = 1, .bias = 1.0f}, {.token = 7, .bias = -1.0f}};
  std::fill(params_.begin(), params_.end(), params);
  device_->Sample({.logits = logits_,
                   .params = params_.data(),
                   .adjusts = adjusts,
                   .tokens = tokens_.data(),
                   .logprobs = logprobs_.data(),
                   .top_tokens = top_tokens_.data(),
                   .top_logprobs = top_logprobs_.data(),
                   .rows = rows_,
                   .vocab = DecodeInputs::kVocab,
                   .max_top = kTop});
}

DecodeStep::Outcome DecodeStep::Read() {
  HostSelection selection = inputs_.selection;
  selection.Read(device_, selection_);
  HostIndex index = inputs_.index;
  index.Read(device_, index_);
  return {.cache = device_.Read(cache_.base, static_cast<int64_t>(inputs_.cache.bytes.size())),
          .index = std::move(index),
          .selected = selection.lists,
          .residual = device_.ReadFloats(residual_, rows_ * kWidth),
          .tokens = tokens_,
          .logprobs = logprobs_,
          .top_tokens = top_tokens_,
          .top_logprobs = top_logprobs_};
}

}  // namespace everlong
