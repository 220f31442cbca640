#include "kernels/cpu/ranking.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>

namespace everlong::cpu {
namespace {

// A number whose order is that of scores.
uint32_t Ordered(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Many scores are counted by their bits above these.
constexpr int kLowerBits = 19;
constexpr size_t kRankingCounts = size_t{1} << (32 - kLowerBits);
constexpr int64_t kManyScores = 1024;

// What the `left`-th best score has above kLowerBits; takes those that have more there off `left`.
uint32_t UpperBitsOfLast(std::span<const float> scores, int64_t& left, Ranking& ranking) {
  ranking.counts.assign(kRankingCounts, 0);
  for (const float score : scores) ++ranking.counts[Ordered(score) >> kLowerBits];
  uint32_t last = kRankingCounts - 1;
  while (ranking.counts[last] < left) left -= ranking.counts[last--];
  return last;
}

}  // namespace

void Ranking::Reserve(int64_t num_scores) {
  ties.reserve(num_scores);
  counts.reserve(kRankingCounts);
}

// Counting how many scores share their upper bits tells which are among the best whatever the rest;
// only those that share the upper bits of the last one are put in order. Of few scores all are.
void Best(std::span<const float> scores, int64_t count, Ranking& ranking,
          std::vector<int32_t>& best) {
  const auto size = static_cast<int64_t>(scores.size());
  best.resize(std::min(count, size));
  if (count == 0 || count >= size) {
    std::iota(best.begin(), best.end(), 0);
    return;
  }
  const bool many = size >= kManyScores;
  int64_t left = count;
  const uint64_t last = many ? UpperBitsOfLast(scores, left, ranking) : 0;
  ranking.ties.clear();
  best.clear();
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t ordered = Ordered(scores[i]);
    const uint64_t upper = ordered >> (many ? kLowerBits : 32);
    if (upper < last) continue;
    if (upper > last) {
      best.push_back(static_cast<int32_t>(i));
    } else {
      ranking.ties.push_back(ordered << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(i)));
    }
  }
  std::nth_element(ranking.ties.begin(), ranking.ties.begin() + left - 1, ranking.ties.end(),
                   std::greater<>());
  for (int64_t i = 0; i < left; ++i) {
    best.push_back(static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(ranking.ties[i])));
  }
  std::sort(best.begin(), best.end());
}

void Dilate(std::span<const float> scores, int64_t reach, std::vector<float>& dilated) {
  const auto size = static_cast<int64_t>(scores.size());
  dilated.assign(scores.begin(), scores.end());
  const float* from = scores.data();
  float* to = dilated.data();
  for (int64_t d = 1; d <= reach; ++d) {
    for (int64_t i = 0; i + d < size; ++i) to[i] = std::max(to[i], from[i + d]);
    for (int64_t i = d; i < size; ++i) to[i] = std::max(to[i], from[i - d]);
  }
}

}  // namespace everlong::cpu
