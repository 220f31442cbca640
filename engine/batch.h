// One step's work in the form the kernels take it, and what its rows of logits are for.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/fidelity.h"
#include "engine/sequence.h"
#include "kernels/kernels.h"

namespace everlong {

class Model;
struct ContextMemory;

// Tokens from the prompt's last one on are decoded: each is a row of its own among the step's first
// ones, whatever else of its sequence is in the step. So what they give does not depend on chunks,
// and neither on whether they come again after a preemption.
//
// Engine thread only. Filled with Add, run once, then read; vectors keep their capacity.
class Batch {
 public:
  // The next `num_tokens` pending tokens of a sequence, its pages already extended for them.
  struct Slice {
    Sequence* sequence;
    int64_t num_tokens;
    int32_t first_score = 0;  // rows of logits that score its prompt's tokens
    int32_t end_score = 0;
    int32_t sample = -1;         // the row that gives its next token, or -1
    std::optional<StepUse> use;  // of its last token, where that is decoded
    int32_t compared = -1;       // that token's number in fidelity(), or -1
  };
  // What one row of logits gave. Valid until the next Run.
  struct Result {
    TokenLogprob chosen;  // the sampled or the scored token
    const TokenLogprob* top;
    int32_t num_top;
  };

  // `num_plans` layer classes; prompt blocks take Selection slots from first_prompt_slot on.
  void Clear(int32_t num_plans, int32_t num_layers, int32_t first_prompt_slot);
  void Add(Sequence& sequence, int64_t num_tokens);
  bool empty() const { return slices_.empty(); }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  bool reads_prompts() const { return num_decode_ < num_tokens(); }

  // Forward pass and sampling; returns once the results are there.
  void Run(Model& model, Kernels& kernels, const ContextMemory& memory);

  const std::vector<Slice>& slices() const { return slices_; }
  Result result(int32_t output) const;
  const Fidelity& fidelity() const { return fidelity_; }

 private:
  void AddDecoded(Slice& slice);
  void AddPrompt(Slice& slice);
  void AddRows(const Sequence& sequence, int64_t begin, int64_t end);
  StepLayout Layout();
  void SampleRows(Model& model, Kernels& kernels, int32_t first, int32_t rows, int32_t max_top);

  std::vector<Slice> slices_;
  int64_t num_decode_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> query_begin_;
  std::vector<int64_t> context_begin_;
  std::vector<int32_t> pages_;
  std::vector<int64_t> page_begin_;
  std::vector<int32_t> output_rows_;
  std::vector<PlanBuilder> plan_builders_;
  std::vector<AttentionPlan> plans_;
  Fidelity fidelity_;

  std::vector<SampleParams> params_;  // [outputs]
  std::vector<TokenAdjust> adjusts_;
  std::vector<int32_t> sampled_tokens_;  // [outputs]
  std::vector<float> sampled_logprobs_;  // [outputs]
  std::vector<TokenLogprob> top_;        // [outputs][kMaxTop]
  std::vector<int32_t> group_tokens_;    // [rows of a group][max_top]
  std::vector<float> group_logprobs_;
};

}  // namespace everlong
