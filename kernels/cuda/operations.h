// The launches of all operations, one for each of Kernels': asynchronous, on the context's stream.
// While a decode step is captured they must not synchronise, and what they launch may depend on
// their arguments, the device and the shape of the step (StepPlan) alone.
#pragma once

#include <memory>
#include <span>

#include "kernels/args.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/step.h"
#include "kernels/kernels.h"

namespace everlong::cuda {

// linear.cu, decode_linear.cu
class Linear;  // owns cuBLASLt's handle and the loaded matrices
std::shared_ptr<Linear> MakeLinear(DType weight_type);  // kBF16 or kF8: what matrices are kept in
Matrix LoadMatrix(Linear& linear, std::span<const HostMatrix> parts, Context& context);
void MatMul(Linear& linear, const MatMulArgs& args, Context& context);
void Embed(const EmbedArgs& args, const Step& step, Context& context);

// elementwise.cu
void RmsNorm(const RmsNormArgs& args, const Step& step, Context& context);
void GatedActivation(const GatedActivationArgs& args, Context& context);

// store_kv.cu
void StoreKv(const StoreKvArgs& args, const Step& step, Context& context);
void CopyPages(const CopyPagesArgs& args, Context& context);

// attention.cu: blocks of decoded tokens by decode_attention.cu, others by prompt_attention.cu
void DecodeAttention(const AttentionArgs& args, const Step& step, Context& context);
void PromptAttention(const AttentionArgs& args, const Step& step, Context& context);

// index_keys.cu
void IndexKeys(const IndexKeysArgs& args, const Step& step, Context& context);

// select.cu; scan.cu and hip.cu choose
void Select(const SelectArgs& args, const Step& step, Context& context);

// sample.cu
class Sampler;
std::shared_ptr<Sampler> MakeSampler();
// Times that the addresses that its kernels use have changed.
int64_t SamplerGeneration(const Sampler& sampler);
// Puts a step's parameters where the kernels will read them.
void StageSample(Sampler& sampler, const SampleArgs& args, Context& context);
// Kernels and the copy back; captured in a decode step.
void LaunchSample(Sampler& sampler, const SampleArgs& args, Context& context);
// After the stream is idle: fills the host arrays of `args`.
void FinishSample(Sampler& sampler, const SampleArgs& args);

}  // namespace everlong::cuda
