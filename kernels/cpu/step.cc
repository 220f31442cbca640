#include "kernels/cpu/step.h"

#include <algorithm>

#include "kernels/check.h"

namespace everlong::cpu {

void Step::Assign(const StepLayout& layout) {
  tokens_.assign(layout.tokens, layout.tokens + layout.num_tokens);
  output_rows_.assign(layout.output_rows, layout.output_rows + layout.num_outputs);
  pages_.assign(layout.pages, layout.pages + layout.page_begin[layout.num_sequences]);
  sequences_.clear();
  max_pages_ = 0;
  for (int32_t s = 0; s < layout.num_sequences; ++s) {
    const int64_t num_pages = layout.page_begin[s + 1] - layout.page_begin[s];
    const int32_t num_tokens = layout.query_begin[s + 1] - layout.query_begin[s];
    EVERLONG_CHECK(layout.context_begin[s] + num_tokens <= num_pages * kPageTokens);
    sequences_.push_back({.first_row = layout.query_begin[s],
                          .num_tokens = num_tokens,
                          .context = layout.context_begin[s],
                          .pages = std::span(pages_).subspan(layout.page_begin[s], num_pages)});
    max_pages_ = std::max(max_pages_, num_pages);
  }
  AssignPlans(layout);
}

void Step::AssignPlans(const StepLayout& layout) {
  blocks_.clear();
  selects_.clear();
  for (int32_t i = 0; i < layout.num_plans; ++i) {
    const AttentionPlan& plan = layout.plans[i];
    blocks_.insert(blocks_.end(), plan.blocks, plan.blocks + plan.num_blocks);
    selects_.insert(selects_.end(), plan.selects, plan.selects + plan.num_selects);
  }
  plans_.clear();
  std::span<const QueryBlock> blocks(blocks_);
  std::span<const SelectParams> selects(selects_);
  for (int32_t i = 0; i < layout.num_plans; ++i) {
    const auto num_blocks = static_cast<size_t>(layout.plans[i].num_blocks);
    const auto num_selects = static_cast<size_t>(layout.plans[i].num_selects);
    plans_.push_back({blocks.first(num_blocks), selects.first(num_selects)});
    blocks = blocks.subspan(num_blocks);
    selects = selects.subspan(num_selects);
  }
}

}  // namespace everlong::cpu
