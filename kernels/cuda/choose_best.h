// The best of many scores, for all lists of a launch.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"

namespace everlong::cuda {

// Of list l, the indices of the keeps[l] largest among scores[l * stride + i], i < counts[l], of
// equal ones the lower, ascending, to chosen[l * chosen_stride ...], how many to num_chosen[l].
// keeps[l] = 0 leaves a list's outputs alone; otherwise keeps[l] <= chosen_stride. All pointers are
// to device memory. Scores are not NaN; -infinity counts as the worst. Uses Scratch::kChooseBest.
struct ChooseBestArgs {
  const float* scores = nullptr;
  const int32_t* counts = nullptr;
  const int32_t* keeps = nullptr;
  int32_t* chosen = nullptr;
  int32_t* num_chosen = nullptr;
  int64_t stride = 0;
  int64_t chosen_stride = 0;
  int32_t num_lists = 0;
  int64_t max_count = 0;  // bounds counts[l]
  // A score stands for the best of those dilations[l] indices around it; null: for itself.
  const int32_t* dilations = nullptr;
};
void ChooseBest(const ChooseBestArgs& args, Context& context);

}  // namespace everlong::cuda
