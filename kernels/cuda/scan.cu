// The scan: scratch memory, and what is launched in which order.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/choose_best.h"
#include "kernels/cuda/scan.h"
#include "kernels/cuda/scanning.h"

namespace everlong::cuda {
namespace {

using scan::Scanning;

// Of scores and query rows. Prompts' blocks are chosen for in groups that need no more.
constexpr int64_t kScratchBytes = int64_t{256} << 20;

// What all groups have in common.
Scanning Describe(const SelectArgs& args, const Step& step, Context& context) {
  const KvCache& cache = args.cache;
  EVERLONG_CHECK(args.index.base != nullptr && args.index.head_dim == cache.head_dim);
  EVERLONG_CHECK(cache.head_dim % 8 == 0 && cache.head_dim <= scan::kMaxHeadDim);
  EVERLONG_CHECK(args.q_heads % cache.kv_heads == 0 && args.q_stride % 2 == 0);
  Scanning s{};
  s.cache = cache;
  s.cache.base = static_cast<std::byte*>(cache.base) + args.layer * cache.layer_stride_bytes;
  s.index = args.index;
  s.index.base =
      static_cast<std::byte*>(args.index.base) + args.layer * args.index.layer_stride_bytes;
  s.index.ranges =
      static_cast<std::byte*>(args.index.ranges) + args.layer * args.index.range_stride_bytes;
  if (args.rotate) s.rope = context.ropes.Get(args.rope, cache.head_dim);
  s.q = static_cast<const __nv_bfloat16*>(args.q);
  s.q_stride = args.q_stride;
  s.group = args.q_heads / cache.kv_heads;
  s.rotate = args.rotate;
  s.selects = step.plans[args.plan].selects;
  s.pages = step.pages;
  s.page_begin = step.page_begin;
  return s;
}

// The most query rows of a list.
int64_t MaxRows(const Scanning& s, const StepPlan& plan, bool decode) {
  QueryBlock longest = {.num_rows = 1};
  if (!decode) {
    for (const QueryBlock& block : plan.host_blocks.subspan(plan.num_decode_blocks)) {
      if (!scan::Scans(block, plan.host_selects.data())) continue;
      longest.num_rows = std::max(longest.num_rows, block.num_rows);
    }
  }
  return s.NumRows(longest);
}

int64_t RowBytes(const Scanning& s) {
  return s.cache.head_dim * int64_t{sizeof(float)} + s.byte_dims() + int64_t{sizeof(float2)};
}

// Room for `num_lists` lists that are scanned, and for what is chosen for `num_all`.
void PlaceLists(Scanning& s, int64_t num_lists, int64_t num_all, Scratch& scratch) {
  const int64_t rows = num_lists * s.row_stride;
  s.rows =
      reinterpret_cast<float*>(scratch.Get<std::byte>(Scratch::kSelectQueries, rows * RowBytes(s)));
  s.bytes = reinterpret_cast<int8_t*>(s.rows + rows * s.cache.head_dim);
  s.totals = reinterpret_cast<float2*>(s.bytes + rows * s.byte_dims());
  s.scores =
      scratch.Get<float>(Scratch::kSelectScores, num_lists * (s.score_stride + s.page_stride));
  s.page_keys = reinterpret_cast<uint32_t*>(s.scores + num_lists * s.score_stride);
  s.chosen =
      scratch.Get<int32_t>(Scratch::kSelectCandidates,
                           num_all * (s.chosen_stride + 1) + num_lists * (s.rerank_stride + 6) + 1);
  s.num_chosen = s.chosen + num_all * s.chosen_stride;
  s.counts = s.num_chosen + num_all;
  s.keeps = s.counts + num_lists;
  s.dilations = s.keeps + num_lists;
  s.rerank_keeps = s.dilations + num_lists;
  s.num_reranked = s.rerank_keeps + num_lists;
  s.reranked = s.num_reranked + num_lists;
  s.first_parts = s.reranked + num_lists * s.rerank_stride;
}

// For the blocks that `s` has, up to their choice.
ChooseBestArgs ScanBlocks(const Scanning& s, const StepPlan::Selects& selects,
                          int64_t max_candidates, Context& context) {
  scan::PrepareLists(s, context);
  scan::ScanPages(s, max_candidates, context);
  ChooseBestArgs choice = {.scores = s.scores,
                           .counts = s.counts,
                           .keeps = s.keeps,
                           .chosen = s.chosen,
                           .num_chosen = s.num_chosen,
                           .stride = s.score_stride,
                           .chosen_stride = s.chosen_stride,
                           .num_lists = static_cast<int32_t>(s.num_lists()),
                           .max_count = max_candidates,
                           .dilations = s.dilations};
  if (selects.max_rerank > 1) {
    ChooseBestArgs reranked = choice;
    reranked.keeps = s.rerank_keeps;
    reranked.chosen = s.reranked;
    reranked.num_chosen = s.num_reranked;
    reranked.chosen_stride = s.rerank_stride;
    reranked.dilations = nullptr;
    ChooseBest(reranked, context);
    scan::ScoreWithStoredKeys(s, max_candidates, context);
  }
  return choice;
}

}  // namespace

ChosenBlocks SelectByScanning(const SelectArgs& args, const Step& step, bool decode,
                              Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  const StepPlan::Selects& selects = decode ? plan.decode : plan.prompt;
  const int32_t begin = decode ? 0 : plan.num_decode_blocks;
  const int32_t end = decode ? plan.num_decode_blocks : plan.num_blocks;
  const int64_t heads = args.cache.kv_heads;
  const int64_t max_candidates = CeilDiv(step.max_length, kBlockTokens);

  Scanning s = Describe(args, step, context);
  s.row_stride = MaxRows(s, plan, decode);
  s.score_stride = max_candidates;
  // Candidates may begin within a page, and fours of pages are read.
  s.page_stride = CeilDiv(max_candidates / kPageBlocks + 1, 4) * int64_t{4};
  s.chosen_stride = std::max(selects.max_keep_blocks, 1);
  s.rerank_stride =
      selects.max_rerank == 1 ? 0 : std::min(s.chosen_stride * selects.max_rerank, max_candidates);
  const int64_t list_bytes =
      s.row_stride * RowBytes(s) + (s.score_stride + s.page_stride) * int64_t{sizeof(float)};
  const int64_t fitting = std::max<int64_t>(kScratchBytes / (list_bytes * heads), 1);
  const auto group = decode ? end : static_cast<int32_t>(std::min<int64_t>(end - begin, fitting));
  PlaceLists(s, group * heads, (end - begin) * heads, context.scratch);
  const bool chooses = scan::CanChooseBlocks(max_candidates, selects.max_keep_blocks);
  const ChosenBlocks chosen = {.blocks = s.chosen,
                               .counts = s.num_chosen,
                               .stride = s.chosen_stride,
                               .from_candidates = true};

  for (int32_t first = begin; first < end; first += group) {
    s.blocks = plan.blocks + first;
    s.num_blocks = std::min(group, end - first);
    const ChooseBestArgs choice = ScanBlocks(s, selects, max_candidates, context);
    if (chooses) {
      scan::ChooseBlocks(s, args.selection, args.layer, max_candidates, context);
    } else {
      ChooseBest(choice, context);
    }
    s.chosen += group * heads * s.chosen_stride;
    s.num_chosen += group * heads;
  }
  return chooses ? ChosenBlocks() : chosen;
}

}  // namespace everlong::cuda
