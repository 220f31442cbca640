#include "kernels/cuda/step.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

constexpr int64_t kAlignment = 256;

void AddStages(const SelectParams& params, StepPlan::Selects& sum) {
  for (int32_t s = 0; s < params.num_stages; ++s) {
    const HipStage& stage = params.stages[s];
    int32_t& shortest = sum.chunk_tokens[s];
    shortest = shortest == 0 ? stage.chunk_tokens : std::min(shortest, stage.chunk_tokens);
    const int32_t kept = stage.keep_chunks * stage.chunk_tokens;
    sum.kept_tokens[s] = std::max(sum.kept_tokens[s], kept);
  }
}

// What the blocks [begin, end) of a plan ask of the selection.
StepPlan::Selects Summarize(const AttentionPlan& plan, int32_t begin, int32_t end) {
  StepPlan::Selects sum;
  for (const QueryBlock& block : std::span(plan.blocks + begin, plan.blocks + end)) {
    if (block.slot < 0 || block.select < 0) continue;
    const SelectParams& params = plan.selects[block.select];
    const bool scans = params.selector == Selector::kScan;
    const int32_t num_stages = scans ? 1 : params.num_stages;
    if (block.first_stage >= num_stages) continue;
    sum.scan |= scans;
    sum.hip |= !scans;
    if (!scans) {
      sum.first_stage = std::min(sum.first_stage, block.first_stage);
      sum.end_stage = std::max(sum.end_stage, num_stages);
      AddStages(params, sum);
    }
    sum.max_keep_blocks = std::max(sum.max_keep_blocks, params.keep_blocks);
    sum.max_rerank = std::max(sum.max_rerank, params.rerank);
    sum.all_heads |= params.all_heads;
  }
  return sum;
}

// Whether decoded tokens may read few or many KV blocks; of a selection only bounds are known.
void CountBlocks(const AttentionPlan& plan, const int64_t* positions, StepPlan& to) {
  for (const QueryBlock& block : std::span(plan.blocks, plan.blocks + to.num_decode_blocks)) {
    const int64_t window_end = positions[block.first_row] / kBlockTokens + 1;
    const int64_t window_begin = block.window_begin / kBlockTokens;
    const int64_t sinks = block.num_sinks / kBlockTokens;
    const int64_t fewest = window_end - window_begin + sinks;
    int64_t selected = block.slot < 0 ? 0 : window_begin - sinks;
    if (block.select >= 0) {
      selected = std::min<int64_t>(selected, plan.selects[block.select].keep_blocks);
    }
    to.few |= fewest <= kFewBlocks;
    to.many |= fewest + selected > kFewBlocks;
  }
}

void Append(std::vector<int64_t>& shape, const StepPlan::Selects& s) {
  shape.insert(shape.end(), {s.scan, s.hip, s.first_stage, s.end_stage, s.max_keep_blocks,
                             s.max_rerank, s.all_heads});
  shape.insert(shape.end(), std::begin(s.chunk_tokens), std::end(s.chunk_tokens));
  shape.insert(shape.end(), std::begin(s.kept_tokens), std::end(s.kept_tokens));
}

}  // namespace

template <class T>
T* StepBuffer::Host(RegionName region) {
  return reinterpret_cast<T*>(host_.get() + regions_[region].offset);
}

template <class T>
const T* StepBuffer::OnDevice(RegionName region) const {
  return reinterpret_cast<const T*>(device_.get() + regions_[region].offset);
}

// Regions grow by half more than is asked for, so that contexts that grow seldom move them.
void StepBuffer::Reserve(const int64_t (&bytes)[kRegions]) {
  bool fits = device_ != nullptr;
  for (int i = 0; i < kRegions; ++i) fits = fits && bytes[i] <= regions_[i].capacity;
  if (fits) return;
  device_ = nullptr;  // where what follows throws, nothing fits
  bytes_ = 0;
  for (int i = 0; i < kRegions; ++i) {
    Region& region = regions_[i];
    if (bytes[i] > region.capacity || region.capacity == 0) {
      region.capacity = (bytes[i] * 3 / 2 + kAlignment) / kAlignment * kAlignment;
    }
    region.offset = bytes_;
    bytes_ += region.capacity;
  }
  host_ = AllocatePinned(bytes_);
  device_ = AllocateDevice(bytes_);
  ++generation_;
}

const Step& StepBuffer::Assign(const StepLayout& layout, cudaStream_t stream) {
  EVERLONG_CHECK(layout.num_decode <= layout.num_sequences);
  int64_t num_blocks = 0;
  int64_t num_selects = 0;
  for (int32_t i = 0; i < layout.num_plans; ++i) {
    num_blocks += layout.plans[i].num_blocks;
    num_selects += layout.plans[i].num_selects;
  }
  const int64_t tokens = layout.num_tokens;
  const int64_t sequences = layout.num_sequences;
  const int64_t num_pages = layout.page_begin == nullptr ? 0 : layout.page_begin[sequences];
  Reserve({tokens * 4, tokens * 8, tokens * 4, (sequences + 1) * 4, sequences * 8, num_pages * 4,
           (sequences + 1) * 8, layout.num_outputs * int64_t{4},
           num_blocks * static_cast<int64_t>(sizeof(QueryBlock)),
           num_selects * static_cast<int64_t>(sizeof(SelectParams))});
  AssignTokens(layout);
  AssignPlans(layout);
  DescribeShape();
  EVERLONG_CUDA(cudaMemcpyAsync(device_.get(), host_.get(), static_cast<size_t>(bytes_),
                                cudaMemcpyHostToDevice, stream));
  return step_;
}

void StepBuffer::AssignTokens(const StepLayout& layout) {
  const int32_t sequences = layout.num_sequences;
  const auto copy = [&](RegionName region, const auto* from, int64_t count) {
    if (count > 0) std::copy_n(from, count, Host<std::remove_cvref_t<decltype(*from)>>(region));
  };
  copy(kTokens, layout.tokens, layout.num_tokens);
  copy(kQueryBegin, layout.query_begin, sequences + 1);
  copy(kContextBegin, layout.context_begin, sequences);
  copy(kPages, layout.pages, layout.page_begin == nullptr ? 0 : layout.page_begin[sequences]);
  if (layout.page_begin != nullptr) copy(kPageBegin, layout.page_begin, sequences + 1);
  copy(kOutputRows, layout.output_rows, layout.num_outputs);
  int64_t longest = 1;
  bool completes_page = false;
  for (int32_t s = 0; s < sequences; ++s) {
    const int64_t begin = layout.context_begin[s];
    const int64_t end = begin + layout.query_begin[s + 1] - layout.query_begin[s];
    for (int64_t position = begin; position < end; ++position) {
      const int64_t row = layout.query_begin[s] + position - begin;
      Host<int64_t>(kPositions)[row] = position;
      Host<int32_t>(kRowSequences)[row] = s;
    }
    longest = std::max(longest, end);
    completes_page |= begin / kPageTokens != end / kPageTokens;
  }
  step_ = {.num_sequences = sequences,
           .num_tokens = layout.num_tokens,
           .num_decode = layout.num_decode,
           .num_outputs = layout.num_outputs,
           .max_length = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(longest))),
           .completes_page = completes_page,
           .tokens = OnDevice<int32_t>(kTokens),
           .positions = OnDevice<int64_t>(kPositions),
           .row_sequences = OnDevice<int32_t>(kRowSequences),
           .query_begin = OnDevice<int32_t>(kQueryBegin),
           .context_begin = OnDevice<int64_t>(kContextBegin),
           .pages = OnDevice<int32_t>(kPages),
           .page_begin = OnDevice<int64_t>(kPageBegin),
           .output_rows = OnDevice<int32_t>(kOutputRows)};
}

void StepBuffer::AssignPlans(const StepLayout& layout) {
  plans_.resize(layout.num_plans);
  int64_t first_block = 0;
  int64_t first_select = 0;
  for (int32_t i = 0; i < layout.num_plans; ++i) {
    const AttentionPlan& plan = layout.plans[i];
    QueryBlock* blocks = Host<QueryBlock>(kBlocks) + first_block;
    SelectParams* selects = Host<SelectParams>(kSelects) + first_select;
    if (plan.num_blocks > 0) std::copy_n(plan.blocks, plan.num_blocks, blocks);
    if (plan.num_selects > 0) std::copy_n(plan.selects, plan.num_selects, selects);
    int32_t num_decode = 0;
    while (num_decode < plan.num_blocks && blocks[num_decode].first_row < layout.num_decode) {
      ++num_decode;
    }
    plans_[i] = {.blocks = OnDevice<QueryBlock>(kBlocks) + first_block,
                 .selects = OnDevice<SelectParams>(kSelects) + first_select,
                 .num_blocks = plan.num_blocks,
                 .num_selects = plan.num_selects,
                 .num_decode_blocks = num_decode,
                 .decode = Summarize(plan, 0, num_decode),
                 .prompt = Summarize(plan, num_decode, plan.num_blocks),
                 .host_blocks = {blocks, static_cast<size_t>(plan.num_blocks)},
                 .host_selects = {selects, static_cast<size_t>(plan.num_selects)}};
    CountBlocks(plan, Host<int64_t>(kPositions), plans_[i]);
    first_block += plan.num_blocks;
    first_select += plan.num_selects;
  }
  step_.plans = plans_;
}

// The places of plans in their regions belong to it, as their sizes do.
void StepBuffer::DescribeShape() {
  shape_.assign({step_.num_sequences, step_.num_tokens, step_.num_decode, step_.num_outputs,
                 step_.max_length, step_.completes_page});
  for (const StepPlan& plan : plans_) {
    shape_.insert(shape_.end(),
                  {plan.num_blocks, plan.num_selects, plan.num_decode_blocks, plan.few, plan.many});
    Append(shape_, plan.decode);
    Append(shape_, plan.prompt);
  }
}

}  // namespace everlong::cuda
