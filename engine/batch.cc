#include "engine/batch.h"

#include <algorithm>

#include "engine/model.h"

namespace everlong {

void Batch::Clear(int32_t num_plans, int32_t num_layers, int32_t first_prompt_slot) {
  plan_builders_.resize(num_plans);
  for (PlanBuilder& builder : plan_builders_) builder.Clear(first_prompt_slot);
  fidelity_.Clear(num_plans, num_layers);
  slices_.clear();
  tokens_.clear();
  num_decode_ = 0;
  query_begin_.assign(1, 0);
  context_begin_.clear();
  pages_.clear();
  page_begin_.assign(1, 0);
  output_rows_.clear();
  params_.clear();
  adjusts_.clear();
}

void Batch::Add(Sequence& sequence, int64_t num_tokens) {
  slices_.push_back({.sequence = &sequence, .num_tokens = num_tokens});
}

void Batch::AddDecoded(Slice& slice) {
  const Sequence& sequence = *slice.sequence;
  const Session& s = sequence.session;
  const int64_t begin = std::max(s.stored, sequence.plan().decode_begin);
  const int64_t end = s.stored + slice.num_tokens;
  if (begin >= end) return;
  for (int64_t position = begin; position < end; ++position) {
    AddRows(sequence, position, position + 1);
  }
  slice.use = UseOf(*sequence.policy, plan_builders_, end - 1);
  if (sequence.Compares(end - 1)) slice.compared = fidelity_.Add(plan_builders_);
  if (!sequence.forked || slice.num_tokens < s.num_pending()) return;
  slice.sample = static_cast<int32_t>(output_rows_.size());
  output_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  params_.push_back(sequence.NextSample(adjusts_));
}

void Batch::AddPrompt(Slice& slice) {
  const Sequence& sequence = *slice.sequence;
  const Session& s = sequence.session;
  const int64_t end = std::min(s.stored + slice.num_tokens, sequence.plan().decode_begin);
  if (s.stored >= end) return;
  const auto first_row = static_cast<int32_t>(tokens_.size());
  AddRows(sequence, s.stored, end);
  const int32_t num_top = sequence.request->prompt_logprobs;
  if (num_top < 0) return;
  slice.first_score = static_cast<int32_t>(output_rows_.size());
  // The row of a position scores the token after it.
  for (int64_t i = std::max(s.stored, sequence.num_scored - 1); i < end; ++i) {
    output_rows_.push_back(first_row + static_cast<int32_t>(i - s.stored));
    params_.push_back({.score_token = s.tokens[i + 1], .num_top = num_top});
  }
  slice.end_score = static_cast<int32_t>(output_rows_.size());
}

// The tokens at [begin, end) as a sequence of the step.
void Batch::AddRows(const Sequence& sequence, int64_t begin, int64_t end) {
  const Session& s = sequence.session;
  for (size_t i = 0; i < plan_builders_.size(); ++i) {
    plan_builders_[i].Add(sequence.plan(), static_cast<int32_t>(i),
                          static_cast<int32_t>(context_begin_.size()),
                          static_cast<int32_t>(tokens_.size()), begin, end);
  }
  tokens_.insert(tokens_.end(), s.tokens.begin() + begin, s.tokens.begin() + end);
  query_begin_.push_back(static_cast<int32_t>(tokens_.size()));
  context_begin_.push_back(begin);
  pages_.insert(pages_.end(), s.pages.begin(), s.pages.end());
  page_begin_.push_back(static_cast<int64_t>(pages_.size()));
}

StepLayout Batch::Layout() {
  for (Slice& slice : slices_) AddDecoded(slice);
  num_decode_ = num_tokens();
  for (Slice& slice : slices_) AddPrompt(slice);
  plans_.clear();
  for (const PlanBuilder& builder : plan_builders_) plans_.push_back(builder.plan());
  if (!fidelity_.empty()) fidelity_.AppendPlans(plans_);
  return {.num_sequences = static_cast<int32_t>(context_begin_.size()),
          .num_tokens = static_cast<int32_t>(tokens_.size()),
          .num_decode = static_cast<int32_t>(num_decode_),
          .tokens = tokens_.data(),
          .query_begin = query_begin_.data(),
          .context_begin = context_begin_.data(),
          .pages = pages_.data(),
          .page_begin = page_begin_.data(),
          .num_outputs = static_cast<int32_t>(output_rows_.size()),
          .output_rows = output_rows_.data(),
          .num_plans = static_cast<int32_t>(plans_.size()),
          .plans = plans_.data()};
}

void Batch::Run(Model& model, Kernels& kernels, const ContextMemory& memory) {
  const StepLayout layout = Layout();
  const auto num_outputs = static_cast<int32_t>(output_rows_.size());
  sampled_tokens_.resize(num_outputs);
  sampled_logprobs_.resize(num_outputs);
  top_.resize(static_cast<size_t>(num_outputs) * kMaxTop);
  int32_t max_top = 0;
  for (const SampleParams& params : params_) max_top = std::max(max_top, params.num_top);

  model.Forward(layout, memory, fidelity_.empty() ? nullptr : &fidelity_);
  for (int32_t first = 0; first < num_outputs; first += model.max_logit_rows()) {
    SampleRows(model, kernels, first, std::min(num_outputs - first, model.max_logit_rows()),
               max_top);
  }
  kernels.Sync();
}

void Batch::SampleRows(Model& model, Kernels& kernels, int32_t first, int32_t rows,
                       int32_t max_top) {
  group_tokens_.resize(static_cast<size_t>(rows) * max_top);
  group_logprobs_.resize(static_cast<size_t>(rows) * max_top);
  kernels.Sample({.logits = model.Logits(first, rows),
                  .params = params_.data() + first,
                  .adjusts = adjusts_.data(),
                  .tokens = sampled_tokens_.data() + first,
                  .logprobs = sampled_logprobs_.data() + first,
                  .top_tokens = group_tokens_.data(),
                  .top_logprobs = group_logprobs_.data(),
                  .rows = rows,
                  .vocab = static_cast<int32_t>(model.config().vocab_size),
                  .max_top = max_top});
  if (max_top == 0) return;
  kernels.Sync();
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t j = 0; j < params_[first + row].num_top; ++j) {
      const size_t from = static_cast<size_t>(row) * max_top + j;
      top_[static_cast<size_t>(first + row) * kMaxTop + j] = {group_tokens_[from],
                                                              group_logprobs_[from]};
    }
  }
}

Batch::Result Batch::result(int32_t output) const {
  const SampleParams& params = params_[output];
  return {.chosen = {sampled_tokens_[output], sampled_logprobs_[output]},
          .top = top_.data() + static_cast<size_t>(output) * kMaxTop,
          .num_top = params.num_top};
}

}  // namespace everlong
