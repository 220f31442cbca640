// The scan of every candidate by the key index: what Selector::kScan chooses.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/select.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda {

// Chooses for all query blocks that scan, of decoded tokens or of prompts; those that take all
// candidates or keep their lists are left out. Or writes all final lists itself, and nothing is
// left to be written (ChosenBlocks::blocks is null). Uses Scratch::kSelectQueries, kSelectScores
// and kSelectCandidates.
ChosenBlocks SelectByScanning(const SelectArgs& args, const Step& step, bool decode,
                              Context& context);

}  // namespace everlong::cuda
