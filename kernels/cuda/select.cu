// Selection: each selector chooses for its query blocks, and what it chose becomes their final
// lists here.
#include "kernels/cuda/error.h"
#include "kernels/cuda/hip.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scan.h"
#include "kernels/cuda/select.h"

namespace everlong::cuda {
namespace {

constexpr int kThreads = 256;

struct Writing {
  Selector selector;
  ChosenBlocks chosen;
  Selection selection;
  int64_t layer;
  const QueryBlock* blocks;
  const SelectParams* selects;
};

// Blocks in ascending order.
struct NewList {
  const int32_t* chosen;  // null: all from `first` on
  int32_t first;
  int32_t count;

  __device__ int32_t operator[](int i) const { return first + (chosen == nullptr ? i : chosen[i]); }
};

__device__ NewList NewListOf(const Writing& w, const QueryBlock& block, const SelectParams& params,
                             int list) {
  const int32_t first = FirstCandidate(block);
  const int32_t end = EndCandidate(block);
  if (end - first <= params.keep_blocks) return {nullptr, first, end - first};
  const bool shared = w.chosen.from_candidates && params.all_heads;
  const int64_t from = shared ? list - list % w.selection.kv_heads : list;
  return {w.chosen.blocks + from * w.chosen.stride, w.chosen.from_candidates ? first : 0,
          w.chosen.counts[from]};
}

__device__ bool Contains(const int32_t* ascending, int count, int32_t block) {
  int begin = 0;
  int end = count;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (ascending[middle] < block) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < count && ascending[begin] == block;
}

__global__ void __launch_bounds__(kThreads) WriteListsKernel(const Writing w) {
  const auto list = static_cast<int>(blockIdx.x);
  const int head = list % w.selection.kv_heads;
  const QueryBlock& block = w.blocks[list / w.selection.kv_heads];
  if (block.slot < 0 || block.select < 0) return;
  const SelectParams& params = w.selects[block.select];
  if (params.selector != w.selector) return;
  if (block.first_stage >= (w.selector == Selector::kHip ? params.num_stages : 1)) return;
  const NewList blocks = NewListOf(w, block, params, list);
  if (blocks.count < 0) return;

  const int64_t at = w.selection.List(w.layer, block.slot, head, kFinalList);
  int32_t* to = w.selection.blocks + at * w.selection.capacity;
  if (!block.first) {
    const int before = w.selection.counts[at];
    int common = 0;
    for (int i = threadIdx.x; i < blocks.count; i += kThreads) {
      common += Contains(to, before, blocks[i]) ? 1 : 0;
    }
    common = ReduceBlock<kThreads>(common, [](int a, int b) { return a + b; });
    if (threadIdx.x == 0) {
      int64_t* reuse = w.selection.reuse + w.selection.Reuse(block.slot, w.layer, head);
      reuse[0] += blocks.count;
      reuse[1] += common;
    }
  }
  __syncthreads();  // the list before is read
  for (int i = threadIdx.x; i < blocks.count; i += kThreads) to[i] = blocks[i];
  if (threadIdx.x == 0) w.selection.counts[at] = blocks.count;
}

void WriteLists(const SelectArgs& args, const StepPlan& plan, bool decode, Selector selector,
                const ChosenBlocks& chosen, const Context& context) {
  const int32_t begin = decode ? 0 : plan.num_decode_blocks;
  const int32_t end = decode ? plan.num_decode_blocks : plan.num_blocks;
  const auto lists = static_cast<unsigned>((end - begin) * args.cache.kv_heads);
  WriteListsKernel<<<lists, kThreads, 0, context.stream>>>({.selector = selector,
                                                            .chosen = chosen,
                                                            .selection = args.selection,
                                                            .layer = args.layer,
                                                            .blocks = plan.blocks + begin,
                                                            .selects = plan.selects});
  EVERLONG_CUDA_LAUNCHED("WriteListsKernel");
}

}  // namespace

void Select(const SelectArgs& args, const Step& step, Context& context) {
  const StepPlan& plan = step.plans[args.plan];
  for (const bool decode : {true, false}) {
    const StepPlan::Selects& selects = decode ? plan.decode : plan.prompt;
    if (selects.hip) {
      const ChosenBlocks chosen = SelectByProbing(args, step, decode, context);
      WriteLists(args, plan, decode, Selector::kHip, chosen, context);
    }
    if (selects.scan) {
      const ChosenBlocks chosen = SelectByScanning(args, step, decode, context);
      if (chosen.blocks != nullptr) {
        WriteLists(args, plan, decode, Selector::kScan, chosen, context);
      }
    }
  }
}

}  // namespace everlong::cuda
