// A CTA keeps a list's keys in shared memory. A list too long for that is cut into parts: what is
// best in each is chosen first, then the best of those.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/choose_best.h"
#include "kernels/cuda/choose_keys.cuh"
#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

constexpr unsigned kAll = kAllLanes;
constexpr int kPartKeys = 8192;

// Calls emit(index, key, place among the chosen) for what is chosen, each part of it by one warp.
template <int kThreads, class Emit>
__device__ void EmitChosen(const uint32_t* keys, int count, const Bar& bar, Room<kThreads>& room,
                           const Emit& emit) {
  constexpr int kWarps = kThreads / 32;
  const auto warp = static_cast<int>(threadIdx.x) / 32;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const int share = (count + kThreads - 1) / kThreads * 32;
  const int begin = min(warp * share, count);
  const int end = min(begin + share, count);
  int above = 0;
  int equal = 0;
  for (int i = begin + lane; i < end; i += 32) {
    above += keys[i] > bar.key ? 1 : 0;
    equal += keys[i] == bar.key ? 1 : 0;
  }
  above = __reduce_add_sync(kAll, above);
  equal = __reduce_add_sync(kAll, equal);
  if (lane == 0) {
    room.warp_sums[0][warp] = above;
    room.warp_sums[1][warp] = equal;
  }
  __syncthreads();
  static_assert(kWarps <= 32);
  equal = SumOfWarpsBefore<kThreads>(room.warp_sums[1]);
  int place = SumOfWarpsBefore<kThreads>(room.warp_sums[0]) + min(equal, bar.num_equal);
  const unsigned lanes_before = (1u << lane) - 1;
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const uint32_t key = i < end ? keys[i] : 0;
    const unsigned equals = __ballot_sync(kAll, i < end && key == bar.key);
    const bool early = equal + __popc(equals & lanes_before) < bar.num_equal;
    const bool chosen = i < end && (key > bar.key || (key == bar.key && early));
    const unsigned all_chosen = __ballot_sync(kAll, chosen);
    if (chosen) emit(i, key, place + __popc(all_chosen & lanes_before));
    place += __popc(all_chosen);
    equal += __popc(equals);
  }
}

template <int kThreads, class Emit>
__device__ void Choose(const uint32_t* keys, int count, int keep, Room<kThreads>& room,
                       const Emit& emit) {
  if (keep >= count) {
    for (int i = threadIdx.x; i < count; i += kThreads) emit(i, keys[i], i);
  } else {
    const auto key_at = [keys](int i) { return keys[i]; };
    const Bar bar = FindBar<kThreads>(key_at, count, keep, 0, room);
    EmitChosen<kThreads>(keys, count, bar, room, emit);
  }
}

// What is chosen in parts, part after part, as many for each: those missing have key 0.
struct Parts {
  uint32_t* keys = nullptr;    // [lists][stride]
  int32_t* indices = nullptr;  // [lists][stride], in the list
  int64_t stride = 0;
};

// The keys [first, first + count) of a list of `end`.
template <int kThreads>
__device__ void LoadKeys(const ChooseBestArgs& args, int list, int first, int count, int end,
                         uint32_t* keys) {
  const float* scores = args.scores + list * args.stride;
  const int dilation = args.dilations == nullptr ? 0 : args.dilations[list];
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    float best = scores[first + i];
    if (dilation > 0) {
      const int last = min(first + i + dilation, end - 1);
      for (int j = max(first + i - dilation, 0); j <= last; ++j) best = fmaxf(best, scores[j]);
    }
    keys[i] = KeyOf(best);
  }
  __syncthreads();
}

template <int kThreads>
__device__ void ChooseAll(const ChooseBestArgs& args, int list, int count) {
  int32_t* to = args.chosen + list * args.chosen_stride;
  for (int i = threadIdx.x; i < count; i += kThreads) to[i] = i;
  if (threadIdx.x == 0) args.num_chosen[list] = count;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) ChooseKernel(const ChooseBestArgs args) {
  extern __shared__ uint32_t keys[];
  __shared__ Room<kThreads> room;
  const auto list = static_cast<int>(blockIdx.x);
  const int count = args.counts[list];
  const int keep = args.keeps[list];
  if (keep == 0) return;
  if (count <= keep) return ChooseAll<kThreads>(args, list, count);
  LoadKeys<kThreads>(args, list, 0, count, count, keys);
  int32_t* to = args.chosen + list * args.chosen_stride;
  Choose<kThreads>(keys, count, keep, room, [&](int i, uint32_t, int place) { to[place] = i; });
  if (threadIdx.x == 0) args.num_chosen[list] = keep;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    ChooseInPartsKernel(const ChooseBestArgs args, const Parts parts) {
  extern __shared__ uint32_t keys[];
  __shared__ Room<kThreads> room;
  const auto list = static_cast<int>(blockIdx.x);
  const auto part = static_cast<int>(blockIdx.y);
  const int end = args.counts[list];
  const int keep = min(args.keeps[list], kPartKeys);
  const int first = part * kPartKeys;
  if (keep == 0 || end <= args.keeps[list] || first >= end) return;
  const int count = min(end - first, kPartKeys);
  LoadKeys<kThreads>(args, list, first, count, end, keys);
  const int64_t at = list * parts.stride + int64_t{part} * keep;
  Choose<kThreads>(keys, count, keep, room, [&](int i, uint32_t key, int place) {
    parts.keys[at + place] = key;
    parts.indices[at + place] = first + i;
  });
  for (int i = count + threadIdx.x; i < keep; i += kThreads) parts.keys[at + i] = 0;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    ChooseOfPartsKernel(const ChooseBestArgs args, const Parts parts, int num_shared_keys) {
  extern __shared__ uint32_t keys[];
  __shared__ Room<kThreads> room;
  const auto list = static_cast<int>(blockIdx.x);
  const int end = args.counts[list];
  const int keep = args.keeps[list];
  if (keep == 0) return;
  if (end <= keep) return ChooseAll<kThreads>(args, list, end);
  const int count = (end + kPartKeys - 1) / kPartKeys * min(keep, kPartKeys);
  const uint32_t* of_parts = parts.keys + list * parts.stride;
  const int32_t* indices = parts.indices + list * parts.stride;
  int32_t* to = args.chosen + list * args.chosen_stride;
  const auto emit = [&](int i, uint32_t, int place) { to[place] = indices[i]; };
  if (count <= num_shared_keys) {
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreads) keys[i] = of_parts[i];
    __syncthreads();
    Choose<kThreads>(keys, count, keep, room, emit);
  } else {
    Choose<kThreads>(of_parts, count, keep, room, emit);
  }
  if (threadIdx.x == 0) args.num_chosen[list] = keep;
}

constexpr size_t kKeyBytes = sizeof(uint32_t);

// Of few CTAs each is to end soon, of many as many as possible are to share an SM.
constexpr int kFewThreads = 256;
constexpr int kManyThreads = 1024;

void ChooseWhole(const ChooseBestArgs& args, const Context& context) {
  const auto lists = static_cast<unsigned>(args.num_lists);
  const size_t bytes = std::max<int64_t>(args.max_count, 1) * kKeyBytes;
  if (args.num_lists <= context.num_sms && args.max_count > 2048) {
    ChooseKernel<kManyThreads><<<lists, kManyThreads, bytes, context.stream>>>(args);
  } else {
    ChooseKernel<kFewThreads><<<lists, kFewThreads, bytes, context.stream>>>(args);
  }
  EVERLONG_CUDA_LAUNCHED("ChooseKernel");
}

void ChooseByParts(const ChooseBestArgs& args, Context& context) {
  const int64_t num_parts = CeilDiv(args.max_count, kPartKeys);
  const int64_t part_stride = std::min<int64_t>(args.chosen_stride, kPartKeys);
  Parts parts = {.stride = num_parts * part_stride};
  const int64_t num_keys = args.num_lists * parts.stride;
  parts.keys = context.scratch.Get<uint32_t>(Scratch::kChooseBest, 2 * num_keys);
  parts.indices = reinterpret_cast<int32_t*>(parts.keys + num_keys);
  const dim3 grid(static_cast<unsigned>(args.num_lists), static_cast<unsigned>(num_parts));
  if (args.num_lists * num_parts <= 2 * context.num_sms) {
    ChooseInPartsKernel<kManyThreads>
        <<<grid, kManyThreads, kPartKeys * kKeyBytes, context.stream>>>(args, parts);
  } else {
    ChooseInPartsKernel<kFewThreads>
        <<<grid, kFewThreads, kPartKeys * kKeyBytes, context.stream>>>(args, parts);
  }
  EVERLONG_CUDA_LAUNCHED("ChooseInPartsKernel");
  const auto shared = static_cast<int>(std::min<int64_t>(parts.stride, kPartKeys));
  ChooseOfPartsKernel<kManyThreads>
      <<<grid.x, kManyThreads, shared * kKeyBytes, context.stream>>>(args, parts, shared);
  EVERLONG_CUDA_LAUNCHED("ChooseOfPartsKernel");
}

}  // namespace

void ChooseBest(const ChooseBestArgs& args, Context& context) {
  EVERLONG_CHECK(args.max_count <= INT32_MAX && args.chosen_stride > 0);
  if (args.num_lists == 0) return;
  if (args.max_count <= kPartKeys) {
    ChooseWhole(args, context);
  } else {
    ChooseByParts(args, context);
  }
}

}  // namespace everlong::cuda
