// Scores by stored keys, for one choice.
#pragma once

#include <span>

#include "kernels/args.h"
#include "kernels/cpu/choice.h"

namespace everlong::cpu {

// Greedy probing in stages from the block's first one on (arXiv 2502.08910, algorithm 1); stores
// their lists. `chunk_turns`: by chunk number, where probes stand at chunks.
void ChooseByProbing(const SelectArgs& args, const Choice& choice,
                     std::span<const Turn> chunk_turns, SelectWorkspace& w);

// w.sums[i] = the score of block w.kept[i].
void ScoreBlocks(const SelectArgs& args, const Choice& choice, SelectWorkspace& w);

}  // namespace everlong::cpu
