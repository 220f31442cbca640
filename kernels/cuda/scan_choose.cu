// The choice among a scan's candidates, by one CTA for each list, and the list itself. Pages' best
// scores bound the worst that is chosen from below: only few blocks are not below that bound.
#include <algorithm>

#include "kernels/cuda/choose_keys.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scanning.h"

namespace everlong::cuda::scan {
namespace {

constexpr int64_t kMaxCandidates = int64_t{1} << 18;
constexpr int32_t kMaxKeepBlocks = 1024;
constexpr int kMaxFound = 4096;         // blocks not below the bound, else all are looked at
constexpr int kMaxSharedPages = 16384;  // whose keys shared memory holds
// By so many pages their bound may be too low: finding it takes a pass less.
constexpr int kSlack = 32;

struct Choosing {
  Scanning scanning;
  Selection selection;
  int64_t layer;
  int32_t num_words;     // of a bit for every candidate
  int32_t shared_pages;  // whose keys there is room for, a multiple of four

  int64_t SharedBytes() const {
    const int64_t words = std::max(shared_pages, num_words) + int64_t{2} * num_words;
    return 4 * (words + 4 * kMaxFound);
  }
};

template <int kThreads>
struct ChoiceRoom {
  Room<kThreads> room;
  int num_pages;
  int num_sources;
  int num_found;
  int common;
};

template <int kThreads>
class ListChoice {
 public:
  __device__ ListChoice(const Choosing& c, uint32_t* shared, ChoiceRoom<kThreads>& room, int list)
      : c_(c),
        s_(c.scanning),
        room_(room),
        block_(s_.blocks[list / s_.cache.kv_heads]),
        params_(s_.selects[block_.select]),
        first_(FirstCandidate(block_)),
        count_(EndCandidate(block_) - first_),
        num_words_((count_ + 31) / 32),
        num_pages_(CeilDiv(EndCandidate(block_), kPageBlocks) - first_ / kPageBlocks) {
    const int head = list % s_.cache.kv_heads;
    const int from = params_.all_heads ? list - head : list;
    scores_ = s_.scores + from * s_.score_stride;
    page_keys_ = s_.page_keys + from * s_.page_stride;
    const int64_t at = c.selection.List(c.layer, block_.slot, head, kFinalList);
    to_ = c.selection.blocks + at * c.selection.capacity;
    to_count_ = c.selection.counts + at;
    reuse_ = c.selection.reuse + c.selection.Reuse(block_.slot, c.layer, head);
    shared_page_keys_ = shared;
    chosen_ = shared + max(c.shared_pages, c.num_words);
    tied_ = chosen_ + c.num_words;
    found_keys_ = tied_ + c.num_words;
    found_ = reinterpret_cast<int*>(found_keys_ + kMaxFound);
    sources_ = found_ + kMaxFound;
    pages_ = sources_ + kMaxFound;
  }

  __device__ void Run() {
    const int num_before = block_.first ? 0 : *to_count_;
    const auto thread = static_cast<int>(threadIdx.x);
    const int before = thread < num_before ? to_[thread] : -1;
    const bool all = count_ <= params_.keep_blocks;
    for (int i = threadIdx.x; i < num_words_; i += kThreads) {
      chosen_[i] = !all                                     ? 0
                   : i + 1 < num_words_ || count_ % 32 == 0 ? ~0u
                                                            : (1u << count_ % 32) - 1;
      tied_[i] = 0;
    }
    if (!all) MarkBest();
    __syncthreads();
    if (!block_.first) MarkBefore(before, num_before);
    Write();
  }

 private:
  __device__ void MarkBest() {
    if (num_pages_ <= c_.shared_pages) {
      const auto* from = reinterpret_cast<const uint4*>(page_keys_);
      auto* to = reinterpret_cast<uint4*>(shared_page_keys_);
#pragma unroll 4
      for (int i = threadIdx.x; 4 * i < num_pages_; i += kThreads) to[i] = from[i];
      page_keys_ = shared_page_keys_;
    }
    if (threadIdx.x == 0) {
      room_.num_pages = 0;
      room_.num_sources = 0;
      room_.num_found = 0;
    }
    __syncthreads();
    if (FindBlocks(LeastOfPages())) {
      Mark(
          room_.num_found, [&](int i) { return found_keys_[i]; }, [&](int i) { return found_[i]; });
    } else {
      Mark(
          count_, [&](int i) { return DilatedKey(i); }, [](int i) { return i; });
    }
  }

  // At least as many blocks as are chosen have such a key: as many pages do.
  __device__ uint32_t LeastOfPages() {
    const auto key_at = [&](int page) { return page_keys_[page]; };
    const Bar bar = FindBar<kThreads>(key_at, num_pages_, params_.keep_blocks, kSlack, room_.room);
    __syncthreads();
    return bar.num_equal > 0 ? bar.key : bar.key + 1;
  }

  // All blocks with dilated keys of at least `least`, in any order; false if they are too many.
  __device__ bool FindBlocks(uint32_t least) {
    for (int page = threadIdx.x; page < num_pages_; page += kThreads) {
      if (page_keys_[page] >= least) Append(page, room_.num_pages, pages_);
    }
    __syncthreads();
    const int num_blocks = room_.num_pages * kPageBlocks;
    if (room_.num_pages > kMaxFound) return false;
    for (int i = threadIdx.x; i < num_blocks; i += kThreads) {
      const int candidate =
          pages_[i / kPageBlocks] * kPageBlocks + i % kPageBlocks - first_ % kPageBlocks;
      if (candidate < 0 || candidate >= count_) continue;
      if (KeyOf(scores_[candidate]) >= least) Append(candidate, room_.num_sources, sources_);
    }
    __syncthreads();
    if (room_.num_sources > kMaxFound) return false;
    FindAround();
    __syncthreads();
    for (int i = threadIdx.x; i < num_words_; i += kThreads) tied_[i] = 0;
    __syncthreads();
    return room_.num_found <= kMaxFound;
  }

  // What takes a source's score, each once: those that are have their bit in tied_.
  __device__ void FindAround() {
    const int width = 2 * params_.dilation + 1;
    for (int i = threadIdx.x; i < room_.num_sources * width; i += kThreads) {
      const int candidate = sources_[i / width] + i % width - params_.dilation;
      if (candidate < 0 || candidate >= count_) continue;
      const uint32_t bit = 1u << candidate % 32;
      if ((atomicOr(tied_ + candidate / 32, bit) & bit) != 0) continue;
      const uint32_t key = DilatedKey(candidate);
      const int place = Append(candidate, room_.num_found, found_);
      if (place < kMaxFound) found_keys_[place] = key;
    }
  }

  // Where there is room.
  __device__ int Append(int value, int& size, int* list) {
    const int place = atomicAdd(&size, 1);
    if (place < kMaxFound) list[place] = value;
    return place;
  }

  __device__ uint32_t DilatedKey(int candidate) const {
    float best = scores_[candidate];
    const int last = min(candidate + params_.dilation, count_ - 1);
    for (int i = max(candidate - params_.dilation, 0); i <= last; ++i) {
      best = fmaxf(best, scores_[i]);
    }
    return KeyOf(best);
  }

  // The bits of those that are chosen of candidates block_at(i) with keys key_at(i), i < count.
  template <class KeyAt, class BlockAt>
  __device__ void Mark(int count, const KeyAt& key_at, const BlockAt& block_at) {
    const Bar bar = FindBar<kThreads>(key_at, count, params_.keep_blocks, 0, room_.room);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t key = key_at(i);
      if (key < bar.key || (key == bar.key && bar.num_equal == 0)) continue;
      const int block = block_at(i);
      atomicOr((key > bar.key ? chosen_ : tied_) + block / 32, 1u << block % 32);
    }
    __syncthreads();
    if (bar.num_equal == 0) return;
    // The first of those with the bar's key.
    const Words words = Own();
    int before = SumBefore(CountBits(tied_, words), 0);
    for (int i = words.begin; i < words.end; ++i) {
      for (uint32_t bits = tied_[i]; bits != 0 && before < bar.num_equal; ++before) {
        const uint32_t lowest = bits & -bits;
        chosen_[i] |= lowest;
        bits ^= lowest;
      }
    }
  }

  // Bits of the list before take the place of pages' keys. `own`: the thread's entry.
  __device__ void MarkBefore(int own, int num_before) {
    uint32_t* before = shared_page_keys_;
    for (int i = threadIdx.x; i < num_words_; i += kThreads) before[i] = 0;
    if (threadIdx.x == 0) room_.common = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < num_before; i += kThreads) {
      const int candidate = (i < kThreads ? own : to_[i]) - first_;
      if (candidate < 0 || candidate >= count_) continue;
      atomicOr(before + candidate / 32, 1u << candidate % 32);
    }
  }

  // The chosen blocks, ascending.
  __device__ void Write() {
    const uint32_t* before = shared_page_keys_;
    const Words words = Own();
    const int own = CountBits(chosen_, words);
    int place = SumBefore(own, 1);  // and the list before is read and marked
    if (threadIdx.x == kThreads - 1) *to_count_ = place + own;
    int common = 0;
    for (int i = words.begin; i < words.end; ++i) {
      if (!block_.first) common += __popc(chosen_[i] & before[i]);
      for (uint32_t bits = chosen_[i]; bits != 0; bits &= bits - 1) {
        to_[place++] = first_ + 32 * i + __ffs(static_cast<int>(bits)) - 1;
      }
    }
    if (block_.first) return;
    common = __reduce_add_sync(kAllLanes, common);
    if (threadIdx.x % 32 == 0) atomicAdd(&room_.common, common);
    __syncthreads();
    if (threadIdx.x != kThreads - 1) return;
    reuse_[0] += place;
    reuse_[1] += room_.common;
  }

  // A thread's share of the words of bits.
  struct Words {
    int begin;
    int end;
  };
  __device__ Words Own() const {
    const int share = CeilDiv(num_words_, kThreads);
    const int begin = min(static_cast<int>(threadIdx.x) * share, num_words_);
    return {begin, min(begin + share, num_words_)};
  }
  __device__ int CountBits(const uint32_t* bits, const Words& words) const {
    int count = 0;
    for (int i = words.begin; i < words.end; ++i) count += __popc(bits[i]);
    return count;
  }

  // Of the threads before this one. After it, all have called it.
  __device__ int SumBefore(int own, int turn) {
    const auto lane = static_cast<int>(threadIdx.x) % 32;
    const int inclusive = InclusiveSum(own);
    if (lane == 31) room_.room.warp_sums[turn][threadIdx.x / 32] = inclusive;
    __syncthreads();
    return SumOfWarpsBefore<kThreads>(room_.room.warp_sums[turn]) + inclusive - own;
  }

  const Choosing& c_;
  const Scanning& s_;
  ChoiceRoom<kThreads>& room_;
  const QueryBlock& block_;
  const SelectParams& params_;
  int first_;
  int count_;
  int num_words_;
  int num_pages_;
  const float* scores_;
  const uint32_t* page_keys_;
  int32_t* to_;
  int32_t* to_count_;
  int64_t* reuse_;
  uint32_t* shared_page_keys_;
  uint32_t* chosen_;  // a bit for every candidate
  uint32_t* tied_;    // of those with the bar's key
  uint32_t* found_keys_;
  int* found_;    // candidates
  int* sources_;  // candidates that are not below the bound themselves
  int* pages_;    // that have some
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) ChooseBlocksKernel(const Choosing c) {
  extern __shared__ uint32_t shared[];
  __shared__ ChoiceRoom<kThreads> room;
  WaitForPrevious();
  LetNextStart();
  const auto list = static_cast<int>(blockIdx.x);
  const QueryBlock& block = c.scanning.blocks[list / c.scanning.cache.kv_heads];
  if (block.slot < 0 || block.select < 0 || block.first_stage > 0) return;
  if (c.scanning.selects[block.select].selector != Selector::kScan) return;
  ListChoice<kThreads>(c, shared, room, list).Run();
}

// Of few CTAs each is to end soon, of many as many as possible are to share an SM.
constexpr int kFewThreads = 256;
constexpr int kManyThreads = 1024;

}  // namespace

bool CanChooseBlocks(int64_t max_candidates, int32_t max_keep_blocks) {
  return max_candidates <= kMaxCandidates && max_keep_blocks <= kMaxKeepBlocks;
}

void ChooseBlocks(const Scanning& s, const Selection& selection, int64_t layer,
                  int64_t max_candidates, Context& context) {
  const Choosing c = {
      .scanning = s,
      .selection = selection,
      .layer = layer,
      .num_words = CeilDiv(max_candidates, 32),
      .shared_pages = static_cast<int32_t>(std::min<int64_t>(s.page_stride, kMaxSharedPages))};
  const bool few = s.num_lists() <= context.num_sms && max_candidates > 2048;
  const auto kernel = few ? ChooseBlocksKernel<kManyThreads> : ChooseBlocksKernel<kFewThreads>;
  const auto bytes = static_cast<int>(c.SharedBytes());
  AllowSharedMemory(kernel, bytes);
  LaunchDependent(context, kernel, dim3(static_cast<unsigned>(s.num_lists())),
                  few ? kManyThreads : kFewThreads, bytes, c);
}

}  // namespace everlong::cuda::scan
