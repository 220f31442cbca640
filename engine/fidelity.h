// How far what decoded tokens read is from attention over their whole contexts. Measured beside a
// step, of which it changes nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/attention_plan.h"
#include "kernels/kernels.h"

namespace everlong {

// Of one layer. Dense layers keep these values.
struct LayerFidelity {
  double recall = 1.0;  // part of the exact softmax's weight on keys that are read, mean of heads
  double error = 0.0;   // |output - exact output| / |exact output|, all heads as one vector
};

// Compares a token's query block with the exact one, which reads every candidate of the selection
// too. Both are computed anew, at the same positions, so that the difference is what selection
// loses. Streaming numbers mean nothing for keys that are not read: there both sides are clipped.
//
// Engine thread only. Filled with Add, measured once a layer, then read; vectors keep their
// capacity.
class Fidelity {
 public:
  // Of a step with `num_plans` plans.
  void Clear(int64_t num_plans, int64_t num_layers);
  // A token whose query blocks are the last ones of the step's plans. Returns its number, or -1
  // where all of them are dense.
  int32_t Add(std::span<const PlanBuilder> plans);
  bool empty() const { return num_tokens_ == 0; }

  // Appends two plans for each of the step's.
  void AppendPlans(std::vector<AttentionPlan>& plans) const;
  // After Select of a layer. `attention` is what the step asks for, with memory to spare in `out`
  // and `lse`.
  void Measure(Kernels& kernels, const AttentionArgs& attention);

  // Of a token, by layer. Valid until Clear.
  std::span<const LayerFidelity> layers(int32_t token) const {
    return {layers_.data() + token * num_layers_, static_cast<size_t>(num_layers_)};
  }

 private:
  // The compared tokens that are sparse in a plan.
  struct Plan {
    std::vector<int32_t> tokens;
    std::vector<QueryBlock> kept;
    std::vector<QueryBlock> exact;
  };
  // What attention gave one token.
  struct Attended {
    std::vector<float> out;  // [q_heads][head_dim]
    std::vector<float> lse;  // [q_heads]
  };

  void Read(Kernels& kernels, const AttentionArgs& attention, int64_t row, Attended& to);
  static LayerFidelity Compare(const Attended& kept, const Attended& exact);

  int64_t num_layers_ = 0;
  int32_t num_tokens_ = 0;
  std::vector<Plan> plans_;
  std::vector<LayerFidelity> layers_;  // [tokens][num_layers]
  std::vector<Attended> kept_;         // of a plan's tokens
  Attended exact_;
  std::vector<std::byte> activations_;
};

}  // namespace everlong
