// Greedy probing, stage by stage: scratch memory, and what is launched in which order.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/choose_best.h"
#include "kernels/cuda/hip.h"
#include "kernels/cuda/hip_probing.h"

namespace everlong::cuda {
namespace {

using hip::Probing;

// Of scores and query rows. Prompts' blocks are chosen for in groups that need no more.
constexpr int64_t kScratchBytes = int64_t{256} << 20;

int64_t MaxChunks(const StepPlan::Selects& selects, int64_t max_length, int stage) {
  const int64_t chunk = selects.chunk_tokens[stage];
  const int64_t of_all = CeilDiv(max_length, chunk);
  return stage == 0 ? of_all : std::min(of_all, selects.kept_tokens[stage - 1] / chunk);
}

int64_t MaxChunks(const StepPlan::Selects& selects, int64_t max_length) {
  int64_t most = 0;
  for (int stage = selects.first_stage; stage < selects.end_stage; ++stage) {
    most = std::max(most, MaxChunks(selects, max_length, stage));
  }
  return most;
}

// What all groups have in common.
Probing Describe(const SelectArgs& args, const Step& step, bool decode, Context& context) {
  const KvCache& cache = args.cache;
  EVERLONG_CHECK(cache.type == DType::kBF16 || cache.type == DType::kF8);
  EVERLONG_CHECK(cache.head_dim % 8 == 0 && cache.head_dim <= 256);
  EVERLONG_CHECK(args.q_heads % cache.kv_heads == 0 && args.q_stride % 4 == 0);
  Probing p{};
  p.cache = cache;
  p.cache.base = static_cast<std::byte*>(cache.base) + args.layer * cache.layer_stride_bytes;
  p.selection = args.selection;
  if (args.rotate) p.rope = context.ropes.Get(args.rope, cache.head_dim);
  p.q = static_cast<const __nv_bfloat16*>(args.q);
  p.q_stride = args.q_stride;
  p.layer = args.layer;
  p.group = args.q_heads / cache.kv_heads;
  p.rotate = args.rotate;
  p.decode = decode;
  p.dim = cache.head_dim == 64 || cache.head_dim == 128 ? cache.head_dim : 256;
  p.row_tiles = hip::RowTiles(p.dim);
  p.selects = step.plans[args.plan].selects;
  p.positions = step.positions;
  p.pages = step.pages;
  p.page_begin = step.page_begin;
  return p;
}

// Query rows of one list, over all stages.
int64_t QueryWords(const Probing& p, const StepPlan& plan) {
  int64_t rows = p.group;
  if (!p.decode) {
    for (const QueryBlock& block : plan.host_blocks.subspan(plan.num_decode_blocks)) {
      if (!hip::Probes(block, plan.host_selects.data())) continue;
      const SelectParams& params = plan.host_selects[block.select];
      for (int stage = block.first_stage; stage < params.num_stages; ++stage) {
        // The most that pooling leaves, wherever the block begins.
        const int64_t per_head =
            hip::RowsPerHead(block, params.stages[stage], hip::kPooledRows - 1);
        rows = std::max(rows, p.group * per_head);
      }
    }
  }
  return CeilDiv(rows, p.pass_rows()) * int64_t{p.pass_tiles()} * (p.dim / 32) * 64;
}

// Stage after stage, for the blocks that `p` has.
void RunStages(const Probing& p, const StepPlan& plan, int32_t first_block, int64_t max_length,
               Context& context) {
  const StepPlan::Selects& selects = p.decode ? plan.decode : plan.prompt;
  for (int stage = selects.first_stage; stage < selects.end_stage; ++stage) {
    const int64_t max_chunks = MaxChunks(selects, max_length, stage);
    hip::ChangeStage(p, stage, stage == selects.first_stage, context.stream);
    if (p.decode) {
      hip::ProbeForDecoded(p, stage, max_chunks, context);
    } else {
      hip::ProbeForPrompts(p, stage, max_chunks, plan.host_blocks.data() + first_block,
                           plan.host_selects.data(), context);
    }
    ChooseBest({.scores = p.scores,
                .counts = p.counts,
                .keeps = p.keeps,
                .chosen = p.chosen,
                .num_chosen = p.num_chosen,
                .stride = p.score_stride,
                .chosen_stride = p.selection.capacity,
                .num_lists = static_cast<int32_t>(p.num_lists()),
                .max_count = max_chunks},
               context);
  }
  hip::ChangeStage(p, selects.end_stage, false, context.stream);
}

}  // namespace

ChosenBlocks SelectByProbing(const SelectArgs& args, const Step& step, bool decode,
                             Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const StepPlan::Selects& selects = decode ? plan.decode : plan.prompt;
  if (!selects.hip) return {};
  const int32_t begin = decode ? 0 : plan.num_decode_blocks;
  const int32_t end = decode ? plan.num_decode_blocks : plan.num_blocks;
  const int64_t heads = args.cache.kv_heads;
  const int64_t capacity = args.selection.capacity;

  Probing p = Describe(args, step, decode, context);
  p.query_stride = QueryWords(p, plan);
  p.score_stride = MaxChunks(selects, step.max_length);
  const int64_t list_bytes = p.query_stride * int64_t{sizeof(uint4)} + p.score_stride * 4;
  const int64_t fitting = std::max<int64_t>(kScratchBytes / (list_bytes * heads), 1);
  const int64_t num_groups = decode ? 1 : std::max(CeilDiv(end - begin, fitting), 1);
  const int32_t group = CeilDiv(end - begin, num_groups);
  const int64_t group_lists = group * heads;
  const int64_t num_lists = (end - begin) * heads;

  p.queries = context.scratch.Get<uint4>(Scratch::kSelectQueries, group_lists * p.query_stride);
  p.scores = context.scratch.Get<float>(Scratch::kSelectScores, group_lists * p.score_stride);
  auto* candidates = context.scratch.Get<int32_t>(
      Scratch::kSelectCandidates,
      (num_lists + group_lists) * capacity + num_lists + 3 * group_lists);
  p.final_blocks = candidates;
  p.chosen = p.final_blocks + num_lists * capacity;
  p.final_counts = p.chosen + group_lists * capacity;
  p.num_chosen = p.final_counts + num_lists;
  p.counts = p.num_chosen + group_lists;
  p.keeps = p.counts + group_lists;
  const ChosenBlocks chosen = {
      .blocks = p.final_blocks, .counts = p.final_counts, .stride = capacity};

  for (int32_t first = begin; first < end; first += group) {
    p.blocks = plan.blocks + first;
    p.num_blocks = std::min(group, end - first);
    RunStages(p, plan, first, step.max_length, context);
    p.final_blocks += group_lists * capacity;
    p.final_counts += group_lists;
  }
  return chosen;
}

}  // namespace everlong::cuda
