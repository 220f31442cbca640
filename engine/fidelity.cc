#include "engine/fidelity.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant.h"

namespace everlong {
namespace {

QueryBlock Kept(QueryBlock block) {
  if (block.positions == Positions::kStreaming) block.positions = Positions::kClipped;
  block.select = -1;
  return block;
}

QueryBlock Exact(const QueryBlock& block) {
  QueryBlock exact = Kept(block);
  exact.num_sinks = static_cast<int32_t>(block.window_begin);
  exact.slot = -1;
  return exact;
}

AttentionPlan PlanOf(const std::vector<QueryBlock>& blocks) {
  return {.num_blocks = static_cast<int32_t>(blocks.size()), .blocks = blocks.data()};
}

}  // namespace

void Fidelity::Clear(int64_t num_plans, int64_t num_layers) {
  num_layers_ = num_layers;
  num_tokens_ = 0;
  layers_.clear();
  plans_.resize(num_plans);
  for (Plan& plan : plans_) {
    plan.tokens.clear();
    plan.kept.clear();
    plan.exact.clear();
  }
}

int32_t Fidelity::Add(std::span<const PlanBuilder> plans) {
  bool sparse = false;
  for (size_t i = 0; i < plans_.size(); ++i) {
    const QueryBlock& block = plans[i].blocks.back();
    if (block.window_begin == 0) continue;
    sparse = true;
    plans_[i].tokens.push_back(num_tokens_);
    plans_[i].kept.push_back(Kept(block));
    plans_[i].exact.push_back(Exact(block));
  }
  if (!sparse) return -1;
  layers_.resize(layers_.size() + num_layers_);
  return num_tokens_++;
}

void Fidelity::AppendPlans(std::vector<AttentionPlan>& plans) const {
  for (const Plan& plan : plans_) plans.push_back(PlanOf(plan.kept));
  for (const Plan& plan : plans_) plans.push_back(PlanOf(plan.exact));
}

void Fidelity::Measure(Kernels& kernels, const AttentionArgs& attention) {
  const Plan& plan = plans_[attention.plan];
  if (plan.tokens.empty()) return;
  const auto num_plans = static_cast<int32_t>(plans_.size());
  AttentionArgs args = attention;
  args.plan = num_plans + attention.plan;
  kernels.Attention(args);
  kept_.resize(plan.tokens.size());
  for (size_t i = 0; i < kept_.size(); ++i) Read(kernels, args, plan.kept[i].first_row, kept_[i]);
  args.plan = 2 * num_plans + attention.plan;
  kernels.Attention(args);
  for (size_t i = 0; i < kept_.size(); ++i) {
    Read(kernels, args, plan.exact[i].first_row, exact_);
    layers_[plan.tokens[i] * num_layers_ + attention.layer] = Compare(kept_[i], exact_);
  }
}

void Fidelity::Read(Kernels& kernels, const AttentionArgs& attention, int64_t row, Attended& to) {
  const int64_t heads = attention.q_heads;
  const DType type = kernels.activation_type();
  to.out.resize(heads * attention.cache.head_dim);
  to.lse.resize(heads);
  activations_.resize(to.out.size() * ByteSize(type));
  const auto bytes = static_cast<int64_t>(activations_.size());
  kernels.Sync();
  kernels.Download(activations_.data(), static_cast<const std::byte*>(attention.out) + row * bytes,
                   bytes);
  kernels.Download(to.lse.data(), attention.lse + row * heads,
                   heads * static_cast<int64_t>(sizeof(float)));
  DequantizeRow(type, activations_.data(), static_cast<int64_t>(to.out.size()), to.out.data());
}

LayerFidelity Fidelity::Compare(const Attended& kept, const Attended& exact) {
  LayerFidelity result = {.recall = 0.0};
  for (size_t h = 0; h < exact.lse.size(); ++h) {
    // Rounding must not make a part more than the whole.
    const double part = std::min(1.0, std::exp(double{kept.lse[h]} - exact.lse[h]));
    result.recall += part / static_cast<double>(exact.lse.size());
  }
  double difference = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < exact.out.size(); ++i) {
    difference += std::pow(double{kept.out[i]} - exact.out[i], 2);
    size += std::pow(double{exact.out[i]}, 2);
  }
  if (size > 0.0) result.error = std::sqrt(difference / size);
  return result;
}

}  // namespace everlong
