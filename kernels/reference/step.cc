#include "kernels/reference/step.h"

#include <cmath>

#include "kernels/check.h"

namespace everlong::reference {

void Rotate(std::span<double> x, int64_t position, const Rope& rope) {
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * rope.inv_freq[i];
    const double cos = std::cos(angle) * rope.scale;
    const double sin = std::sin(angle) * rope.scale;
    const double a = x[i];
    const double b = x[i + half];
    x[i] = a * cos - b * sin;
    x[i + half] = b * cos + a * sin;
  }
}

double Dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Step::Step(const StepLayout& layout)
    : tokens(layout.tokens, layout.tokens + layout.num_tokens),
      output_rows(layout.output_rows, layout.output_rows + layout.num_outputs) {
  for (int32_t s = 0; s < layout.num_sequences; ++s) {
    StepSequence sequence = {
        .first_token = layout.query_begin[s],
        .num_tokens = layout.query_begin[s + 1] - layout.query_begin[s],
        .context = layout.context_begin[s],
        .pages = {layout.pages + layout.page_begin[s], layout.pages + layout.page_begin[s + 1]}};
    const auto room = static_cast<int64_t>(sequence.pages.size()) * kPageTokens;
    EVERLONG_CHECK(sequence.context + sequence.num_tokens <= room);
    sequences.push_back(std::move(sequence));
  }
  for (int32_t i = 0; i < layout.num_plans; ++i) {
    const AttentionPlan& plan = layout.plans[i];
    plans.push_back({.blocks = {plan.blocks, plan.blocks + plan.num_blocks},
                     .selects = {plan.selects, plan.selects + plan.num_selects}});
  }
}

std::span<const int32_t> SelectedBlocks(const Selection& selection, int64_t layer, int64_t slot,
                                        int64_t kv_head) {
  const int64_t list = selection.List(layer, slot, kv_head, kFinalList);
  return {selection.blocks + list * selection.capacity,
          static_cast<size_t>(selection.counts[list])};
}

}  // namespace everlong::reference
