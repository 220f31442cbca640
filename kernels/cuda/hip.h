// Greedy probing in stages (arXiv 2502.08910, algorithm 1): what Selector::kHip chooses.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/select.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda {

// Runs the stages from their first on of all query blocks that probe, of decoded tokens or of
// prompts, and leaves what stages before the last keep in the selection's lists. Blocks that take
// all candidates are left out, like those that do not probe. Where no block has a stage to run,
// `blocks` is null. Uses Scratch::kSelectQueries, kSelectScores and kSelectCandidates.
ChosenBlocks SelectByProbing(const SelectArgs& args, const Step& step, bool decode,
                             Context& context);

}  // namespace everlong::cuda
