// Attention of decoded tokens that read few keys.
#pragma once

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"

namespace everlong::cuda::decode {

// Whether AttendFew serves such keys on this device.
bool ServesFew(const AttentionArgs& args, const Context& context);

// Of the plan's decoded tokens those that read at most kFewBlocks KV blocks, or all of them.
void AttendFew(const AttentionArgs& args, const Step& step, bool all, const RopeTable& rope,
               Context& context);

}  // namespace everlong::cuda::decode
