#include "kernels/reference/step.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/dtype.h"

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

void CachedRow::Read(std::span<double> out) const {
  const double factor = type == DType::kF8 ? ReadElement(scale, DType::kF32) : 1.0;
  const std::byte* from = elements;
  for (double& x : out) {
    x = factor * ReadElement(from, type);
    from += ByteSize(type);
  }
}

void CachedRow::Write(std::span<const float> values) const {
  float divisor = 1.0f;
  if (type == DType::kF8) {
    float largest = 0.0f;
    for (const float x : values) largest = std::max(largest, std::abs(x));
    const float stored = largest / 448.0f;
    WriteElement(scale, DType::kF32, stored);
    if (stored > 0.0f) divisor = stored;  // else all elements round to 0
  }
  std::byte* to = elements;
  for (const float x : values) {
    WriteElement(to, type, x / divisor);
    to += ByteSize(type);
  }
}

CachedRow KeyRow(const KvCache& cache, int64_t layer, int64_t page, int64_t head, int64_t slot) {
  const int64_t row = slot % kBlockTokens;
  std::byte* block = KeyAddress(cache, layer, page, head, slot - row);
  const int64_t element = ByteSize(cache.type);
  return {.elements = block + row * cache.head_dim * element,
          .scale = block + cache.BlockElements() * element + row * 4,
          .type = cache.type};
}

CachedRow ValueRow(const KvCache& cache, int64_t layer, int64_t page, int64_t head, int64_t slot) {
  CachedRow row = KeyRow(cache, layer, page, head, slot);
  row.elements += int64_t{kBlockTokens} * cache.head_dim * ByteSize(cache.type);
  row.scale += int64_t{kBlockTokens} * 4;
  return row;
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
