// Scores of candidates from the key index. Where a sieve leaves some pages only, a CTA finds those
// of one of its groups and scans them at once: pages of a group need not wait for any others. It is
// a matter of bandwidth: every warp reads a KV head of a page at once, while others work on theirs
// and the next group's ranges arrive.
#include <algorithm>

#include "kernels/cuda/choose_keys.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/scan_sieve.cuh"
#include "kernels/cuda/scan_tile.cuh"
#include "kernels/cuda/scanning.h"

namespace everlong::cuda::scan {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kResidentCtas = 2;  // of an SM
static_assert(kThreads >= 2 * kSieveGroupPages && kWarps * kWarpPages >= kSieveGroupPages);

template <int kDim>
struct Room {
  StagedRanges<kDim> ranges;
  alignas(16) float promises[kSieveGroupPages];
  int kept[kSieveGroupPages];  // those that are scanned, in any order
};

// A part of a query block's scan (Division), for one list.
template <int kDim, int kBits>
class PartScan {
 public:
  __device__ PartScan(const Scanning& s, int number, int part, Room<kDim>& room)
      : s_(s),
        room_(room),
        block_(s.blocks[number]),
        division_(DivisionOf(s, block_)),
        group_(part / division_.num_lists),
        first_head_(part % division_.num_lists),
        end_head_(first_head_ + (division_.num_lists == 1 ? s.cache.kv_heads : 1)),
        list_(number * s.cache.kv_heads + first_head_),
        first_block_(FirstCandidate(block_)),
        num_blocks_(EndCandidate(block_) - first_block_),
        num_rows_(s.NumRows(block_)),
        pages_(s.pages + s.page_begin[block_.sequence] + division_.first_page),
        scores_(s.scores + list_ * s.score_stride),
        page_keys_(s.page_keys + list_ * s.page_stride) {}

  // Begins to copy what Run begins with.
  __device__ void Prefetch() const {
    if (sieves()) CopyRanges(first_head_);
  }

  // `prefetch_next` is called where the room for ranges is free again.
  template <class PrefetchNext>
  __device__ void Run(const PrefetchNext& prefetch_next) const {
    const bool sieves = this->sieves();
    if (sieves) TakePromises();
    prefetch_next();
    if (sieves) Rank();
    const int first = kPartPages * group_;
    const int count = sieves ? division_.sieve.keep : min(kPartPages, division_.num_pages - first);
    const auto warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll 1
    for (int i = warp; i < count; i += kWarps) ScanPage(sieves ? room_.kept[i] : first + i);
  }

 private:
  __device__ bool sieves() const {
    return division_.sieve.num_groups > 0;
  }
  __device__ int GroupPages() const {
    return CeilDiv(division_.num_pages - group_, division_.sieve.num_groups);
  }

  // Finds the pages that are kept, and leaves those that are not without scores.
  __device__ void Rank() const {
    // Two threads compare a page with half of the others each.
    const auto i = static_cast<int>(threadIdx.x) / 2;
    if (i < kSieveGroupPages) Rank(i, static_cast<int>(threadIdx.x) % 2, GroupPages());
    __syncthreads();
  }

  __device__ void Rank(int i, int half, int count) const {
    const int num_groups = division_.sieve.num_groups;
    const float own = room_.promises[i];
    int better = 0;
#pragma unroll 4
    for (int j = 0; j < kSieveGroupPages / 2; j += 4) {
      const int at = half * (kSieveGroupPages / 2) + j;
      const float4 other = *reinterpret_cast<const float4*>(room_.promises + at);
      better += other.x > own || (other.x == own && at < i) ? 1 : 0;
      better += other.y > own || (other.y == own && at + 1 < i) ? 1 : 0;
      better += other.z > own || (other.z == own && at + 2 < i) ? 1 : 0;
      better += other.w > own || (other.w == own && at + 3 < i) ? 1 : 0;
    }
    better += __shfl_xor_sync(kAll, better, 1);
    const int page = group_ + i * num_groups;
    if (better < division_.sieve.keep) {
      if (half == 0) room_.kept[better] = page;
    } else if (i < count) {
      if (half == 0) page_keys_[page] = 0;
      for (int b = half * 4; b < half * 4 + 4; ++b) StoreScore(page, b, -INFINITY);
    }
  }

  __device__ void CopyRanges(int head) const {
    room_.ranges.template Copy<kThreads>(s_.index, pages_ + group_, division_.sieve.num_groups,
                                         GroupPages(), head);
  }

  // Of the group's pages, a warp's sixteen at once; of those that are not there, less than any.
  __device__ void TakePromises() const {
    const int first = static_cast<int>(threadIdx.x) / 32 * kWarpPages + Lane() / 4;
    const int count = GroupPages();
    float2 best = {-INFINITY, -INFINITY};
#pragma unroll 1
    for (int head = first_head_; head < end_head_; ++head) {
      if (head > first_head_) CopyRanges(head);
      AwaitCopies<0>();
      __syncthreads();
      if (first < kSieveGroupPages) {
        const PageRanges<kDim> lower(room_.ranges, first, head, s_.cache.head_dim);
        const PageRanges<kDim> upper(room_.ranges, first + 8, head, s_.cache.head_dim);
        const float2 promises = Promises(s_, lower, upper, FirstRow(head), num_rows_);
        best = {fmaxf(best.x, promises.x), fmaxf(best.y, promises.y)};
      }
      if (head + 1 < end_head_) __syncthreads();
    }
    if (Lane() % 4 == 0 && first < kSieveGroupPages) {
      room_.promises[first] = first < count ? best.x : -INFINITY;
      room_.promises[first + 8] = first + 8 < count ? best.y : -INFINITY;
    }
    __syncthreads();
  }

  __device__ int64_t FirstRow(int head) const {
    return int64_t{list_ - first_head_ + head} * s_.row_stride;
  }

  __device__ void ScanPage(int page) const {
    const int64_t id = pages_[page];
    const int head_dim = kDim == 0 ? s_.cache.head_dim : kDim;
    float best[8 / kBits];
    for (float& score : best) score = -INFINITY;
#pragma unroll 1
    for (int head = first_head_; head < end_head_; ++head) {
      PageHead<kDim, kBits> keys;
      keys.Load(s_.index, static_cast<const std::byte*>(s_.index.base) + id * s_.index.PageBytes() +
                              head * s_.index.HeadBytes());
#pragma unroll 1
      for (int row = 0; row < num_rows_; row += kTileRows) {
        ScoreTile(keys, TileOf(s_, FirstRow(head) + row), head_dim, s_.byte_dims(), best);
      }
    }
    StoreScores(page, best);
  }

  // A block's keys are slots of one field in 8 / kBits neighbouring groups of lanes.
  __device__ void StoreScores(int page, float (&best)[8 / kBits]) const {
    constexpr int kLanes = 4 * 8 / kBits;
    float best_of_page = -INFINITY;
#pragma unroll
    for (int field = 0; field < 8 / kBits; ++field) {
      for (int lanes = 1; lanes < kLanes; lanes *= 2) {
        best[field] = fmaxf(best[field], __shfl_xor_sync(kAll, best[field], lanes));
      }
      const int block = Lane() / kLanes + field * kBits;
      if (!IsCandidate(page, block)) continue;
      best_of_page = fmaxf(best_of_page, best[field]);
      if (Lane() % kLanes == 0) StoreScore(page, block, best[field]);
    }
    __syncwarp();
    for (int lanes = kLanes; lanes < 32; lanes *= 2) {
      best_of_page = fmaxf(best_of_page, __shfl_xor_sync(kAll, best_of_page, lanes));
    }
    if (Lane() == 0) page_keys_[page] = KeyOf(best_of_page);
  }

  __device__ int Candidate(int page, int block) const {
    return page * kPageBlocks + block - first_block_ % kPageBlocks;
  }
  __device__ bool IsCandidate(int page, int block) const {
    const int candidate = Candidate(page, block);
    return candidate >= 0 && candidate < num_blocks_;
  }
  __device__ void StoreScore(int page, int block, float score) const {
    if (IsCandidate(page, block)) scores_[Candidate(page, block)] = score;
  }

  const Scanning& s_;
  Room<kDim>& room_;
  const QueryBlock& block_;
  Division division_;
  int group_;
  int first_head_;
  int end_head_;
  int64_t list_;
  int first_block_;
  int num_blocks_;
  int num_rows_;
  const int32_t* pages_;
  float* scores_;
  uint32_t* page_keys_;
};

// Of the blocks that have parts, the one whose parts count from `part` or before.
__device__ int BlockOfPart(const Scanning& s, int part) {
  int blocks = 0;
  for (int first = 0; first < s.num_blocks; first += 32) {
    const int i = first + Lane();
    const bool before = i < s.num_blocks && s.first_parts[i] <= part;
    blocks += __popc(__ballot_sync(kAll, before));
  }
  return blocks - 1;
}

// Parts of all query blocks, one after another, are dealt out to the CTAs.
template <int kDim, int kBits>
__global__ void __launch_bounds__(kThreads, kDim == 0 ? 1 : kResidentCtas)
    ScanPagesKernel(const Scanning s) {
  extern __shared__ uint4 shared[];
  auto& room = *reinterpret_cast<Room<kDim>*>(shared);
  WaitForPrevious();
  const int total = s.first_parts[s.num_blocks];
  const auto scan = [&](int part) {
    const int number = BlockOfPart(s, part);
    return PartScan<kDim, kBits>(s, number, part - s.first_parts[number], room);
  };
  auto part = static_cast<int>(blockIdx.x);
  if (part < total) scan(part).Prefetch();
  for (; part < total; part += static_cast<int>(gridDim.x)) {
    const int next = part + static_cast<int>(gridDim.x);
    scan(part).Run([&] {
      if (next < total) scan(next).Prefetch();
    });
    __syncthreads();  // what is kept may change
  }
  LetNextStart();
}

template <int kDim>
auto KernelFor(int bits) {
  return bits == 4   ? ScanPagesKernel<kDim, 4>
         : bits == 2 ? ScanPagesKernel<kDim, 2>
                     : ScanPagesKernel<kDim, 1>;
}

}  // namespace

void ScanPages(const Scanning& s, int64_t max_candidates, const Context& context) {
  const int head_dim = s.cache.head_dim;
  const auto kernel = head_dim == 64    ? KernelFor<64>(s.index.bits)
                      : head_dim == 128 ? KernelFor<128>(s.index.bits)
                                        : KernelFor<0>(s.index.bits);
  // Candidates may begin within a page.
  const int64_t max_parts = s.num_lists() * CeilDiv(max_candidates / kPageBlocks + 1, kPartPages);
  const auto ctas =
      static_cast<unsigned>(std::min<int64_t>(max_parts, int64_t{kResidentCtas} * context.num_sms));
  const auto bytes = static_cast<int>(head_dim == 64    ? sizeof(Room<64>)
                                      : head_dim == 128 ? sizeof(Room<128>)
                                                        : sizeof(Room<0>));
  AllowSharedMemory(kernel, bytes);
  LaunchDependent(context, kernel, dim3(ctas), kThreads, bytes, s);
}

}  // namespace everlong::cuda::scan
