// Attention of the query blocks of prompts on GPUs of compute capability 9.0.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda {

// Whether the GPU is one and the build is for it; depends on the shapes of `args` alone, and a
// query is given to one kernel or the other whatever is beside it.
bool HasHopperPromptAttention(const AttentionArgs& args, const Context& context);
// `rope` is of args.rope, empty if nothing is rotated.
void HopperPromptAttention(const AttentionArgs& args, const Step& step, const RopeTable& rope,
                           Context& context);

}  // namespace everlong::cuda
