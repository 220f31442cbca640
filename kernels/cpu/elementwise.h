// Operations on rows of activations, and sums over logits.
#pragma once

#include <span>

#include "kernels/args.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace everlong::cpu {

void RmsNorm(const RmsNormArgs& args, const Step& step, ThreadPool& pool);
void ActivateGated(const GatedActivationArgs& args, ThreadPool& pool);
void StoreKv(const StoreKvArgs& args, const Step& step, ThreadPool& pool);

// A RowSampler::SumExpFunction.
double SumExp(std::span<const float> x, float shift, double factor);

}  // namespace everlong::cpu
