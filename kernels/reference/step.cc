#include "kernels/reference/step.h"

#include <cmath>
#include <cstring>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace everlong::reference {

float ReadElement(const std::byte* from, DType type) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return type == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

void WriteElement(std::byte* to, DType type, float value) {
  if (type == DType::kF32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = type == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

std::byte* KeyAddress(const KvCache& cache, int64_t layer, int64_t page, int64_t head,
                      int64_t slot) {
  const int64_t block = head * kPageBlocks + slot / kBlockTokens;
  const int64_t element = block * cache.BlockElements() + slot % kBlockTokens * cache.head_dim;
  return static_cast<std::byte*>(cache.base) + layer * cache.layer_stride_bytes +
         page * cache.PageBytes() + element * ByteSize(cache.type);
}

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
