// The best of many scores.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace everlong::cpu {

// Memory for finding them, kept between calls.
struct Ranking {
  std::vector<int32_t> counts;  // by upper bits
  std::vector<uint64_t> ties;

  void Reserve(int64_t num_scores);
};

// Indices of the `count` largest scores, ascending; of equal ones the first.
void Best(std::span<const float> scores, int64_t count, Ranking& ranking,
          std::vector<int32_t>& best);

// The best scores of windows of 2 * reach + 1 neighbours.
void Dilate(std::span<const float> scores, int64_t reach, std::vector<float>& dilated);

}  // namespace everlong::cpu
