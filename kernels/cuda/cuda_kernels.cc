// The CUDA backend: Kernels over the launches of operations.h.
#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/kernels.h"

namespace everlong::cuda {
namespace {

struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};

// Whether the result of the first is what the second takes, and neither overwrites what the other
// reads.
bool Feeds(const RmsNormArgs& norm, const MatMulArgs& product) {
  return norm.out == product.x && norm.rows == product.rows && norm.width == product.w.cols &&
         norm.width == product.x_stride && product.mode != MatMulOut::kAddF32 &&
         product.out != norm.x;
}
bool Feeds(const MatMulArgs& product, const GatedActivationArgs& gate) {
  return product.out == gate.gate_up && product.mode == MatMulOut::kActivations &&
         product.rows == gate.rows && product.w.rows == int64_t{2} * gate.width &&
         product.out_stride == product.w.rows && gate.out != product.x;
}

// The product that `calls` begin with, with the norm before it and the activation after it.
ProductCalls ProductAt(std::span<const Call> calls) {
  const auto* norm = std::get_if<RmsNormArgs>(&calls.front());
  if (norm != nullptr) calls = calls.subspan(1);
  if (calls.empty()) return {};
  const auto* product = std::get_if<MatMulArgs>(&calls.front());
  if (product == nullptr || (norm != nullptr && !Feeds(*norm, *product))) return {};
  const auto* gate = calls.size() < 2 ? nullptr : std::get_if<GatedActivationArgs>(&calls[1]);
  if (gate != nullptr && !Feeds(*product, *gate)) gate = nullptr;
  return {.product = product, .norm = norm, .gate = gate};
}

// A step of decoded tokens is kept as a list of calls and launched as a whole by Sync; the calls of
// any other step are launched at once.
class CudaKernels : public Kernels {
 public:
  explicit CudaKernels(DType weight_type) {
    int device = 0;
    cudaDeviceProp properties;
    EVERLONG_CUDA(cudaGetDevice(&device));
    EVERLONG_CUDA(cudaGetDeviceProperties(&properties, device));
    cudaStream_t stream = nullptr;
    EVERLONG_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
    context_.stream = stream;
    gpu_ = properties.name;
    context_.num_sms = properties.multiProcessorCount;
    context_.architecture = 10 * properties.major + properties.minor;
    linear_ = MakeLinear(weight_type);
    sampler_ = MakeSampler();
  }

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return "cuda: " + gpu_; }
  DType activation_type() const override { return DType::kBF16; }
  std::span<const DType> kv_types() const override {
    static constexpr DType kTypes[] = {DType::kBF16, DType::kF8};
    return kTypes;
  }
  // A device that has failed gives no answer.
  std::optional<MemoryBytes> memory() const override {
    size_t free = 0;
    size_t total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return std::nullopt;
    return MemoryBytes{.total = static_cast<int64_t>(total), .free = static_cast<int64_t>(free)};
  }

  void* Allocate(int64_t bytes) override {
    DeviceMemory block = AllocateDevice(std::max<int64_t>(bytes, 1));
    ZeroNow(block.get(), bytes);
    void* address = block.get();
    blocks_[address] = std::move(block);
    return address;
  }
  void Free(void* device) override { blocks_.erase(device); }

  void Upload(void* device, const void* host, int64_t bytes) override {
    Sync();
    CopyNow(device, host, bytes);
  }
  void Download(void* host, const void* device, int64_t bytes) override {
    Sync();
    EVERLONG_CUDA(cudaMemcpy(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost));
  }

  Matrix LoadMatrix(std::span<const HostMatrix> parts) override {
    return cuda::LoadMatrix(*linear_, parts, context_);
  }

  void BeginStep(const StepLayout& layout) override {
    Sync();
    const Step& step = buffer_.Assign(layout, context_.stream);
    busy_ = true;
    deferring_ = step.num_decode == step.num_tokens;
  }

  void Embed(const EmbedArgs& args) override { Add(args); }
  void RmsNorm(const RmsNormArgs& args) override { Add(args); }
  void MatMul(const MatMulArgs& args) override { Add(args); }
  void StoreKv(const StoreKvArgs& args) override { Add(args); }
  void IndexKeys(const IndexKeysArgs& args) override { Add(args); }
  void Select(const SelectArgs& args) override { AddRotating(args); }
  void Attention(const AttentionArgs& args) override { AddRotating(args); }
  void GatedActivation(const GatedActivationArgs& args) override { Add(args); }

  // One set of results at a time.
  void Sample(const SampleArgs& args) override {
    if (sample_) Sync();
    Add(SampleCall{args});
    sample_ = args;
  }

  void CopyPages(const CopyPagesArgs& args) override {
    Sync();
    cuda::CopyPages(args, context_);
    busy_ = true;
  }

  void Sync() override {
    if (!calls_.empty()) LaunchDeferred();
    if (!busy_) return;
    EVERLONG_CUDA(cudaStreamSynchronize(context_.stream));
    busy_ = false;
    if (sample_) FinishSample(*sampler_, *sample_);
    sample_.reset();
  }

 private:
  void Add(const Call& call) {
    if (deferring_) {
      calls_.push_back(call);
      return;
    }
    busy_ = true;
    if (const auto* sample = std::get_if<SampleCall>(&call)) {
      StageSample(*sampler_, sample->args, context_);
    }
    Launch(call);
  }

  // Calls are compared by address, and the caller's may come to hold other frequencies.
  template <class Args>
  void AddRotating(Args args) {
    if (args.rotate) args.rope = context_.ropes.Keep(args.rope, args.cache.head_dim);
    Add(args);
  }

  void LaunchDeferred() {
    busy_ = true;
    launching_.clear();
    launching_.swap(calls_);
    // Where something throws, there is nothing to finish.
    const std::optional<SampleArgs> sample = std::exchange(sample_, std::nullopt);
    if (sample) StageSample(*sampler_, *sample, context_);
    key_ = buffer_.shape();
    key_.push_back(buffer_.generation());
    key_.push_back(SamplerGeneration(*sampler_));
    graphs_.Run(key_, launching_, context_.stream, [this] { LaunchAll(launching_); });
    sample_ = sample;
  }

  void LaunchAll(std::span<const Call> calls) {
    while (!calls.empty()) {
      const ProductCalls product = ProductAt(calls);
      if (product.product == nullptr) {
        Launch(calls.front());
        calls = calls.subspan(1);
        continue;
      }
      calls = calls.subspan(1 + (product.norm != nullptr) + (product.gate != nullptr));
      cuda::MatMul(*linear_, product, step(), context_);
    }
  }

  void Launch(const Call& call) {
    std::visit([this](const auto& args) { Launch(args); }, call);
  }
  void Launch(const EmbedArgs& args) { cuda::Embed(args, step(), context_); }
  void Launch(const RmsNormArgs& args) { cuda::RmsNorm(args, step(), context_); }
  void Launch(const MatMulArgs& args) { cuda::MatMul(*linear_, args, context_); }
  void Launch(const StoreKvArgs& args) { cuda::StoreKv(args, step(), context_); }
  void Launch(const IndexKeysArgs& args) {
    if (step().completes_page) cuda::IndexKeys(args, step(), context_);
  }
  void Launch(const SelectArgs& args) { cuda::Select(args, step(), context_); }
  void Launch(const AttentionArgs& args) {
    const StepPlan& plan = step().plans[args.plan];
    if (plan.num_decode_blocks > 0) DecodeAttention(args, step(), context_);
    if (plan.num_decode_blocks < plan.num_blocks) PromptAttention(args, step(), context_);
  }
  void Launch(const GatedActivationArgs& args) { cuda::GatedActivation(args, context_); }
  void Launch(const SampleCall& call) { LaunchSample(*sampler_, call.args, context_); }

  const Step& step() const { return buffer_.step(); }

  std::string gpu_;
  std::unique_ptr<CUstream_st, DestroyStream> stream_;
  Context context_;
  std::unordered_map<void*, DeviceMemory> blocks_;
  StepBuffer buffer_;
  std::shared_ptr<Linear> linear_;
  std::shared_ptr<Sampler> sampler_;
  StepGraphs graphs_;
  std::vector<Call> calls_;  // not launched yet
  std::vector<Call> launching_;
  std::optional<SampleArgs> sample_;  // not finished yet
  std::vector<int64_t> key_;
  bool deferring_ = false;
  bool busy_ = false;  // something was launched since the last Sync
};

// Empty where there is a GPU that this build can use.
std::string WhyNot() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return cudaGetErrorString(status);
  if (count == 0) return "there is no NVIDIA GPU";
  cudaDeviceProp properties;
  EVERLONG_CUDA(cudaGetDeviceProperties(&properties, 0));
  if (properties.major >= 8) return {};
  return std::string(properties.name) + " has compute capability " +
         std::to_string(properties.major) + "." + std::to_string(properties.minor) +
         ", 8.0 is needed";
}

}  // namespace
}  // namespace everlong::cuda

// What kernels/cuda_module.cc looks up.
extern "C" __attribute__((visibility("default"))) everlong::Kernels* EverlongMakeCudaKernels(
    everlong::DType weight_type, std::string* why) {
  try {
    *why = everlong::cuda::WhyNot();
    if (!why->empty()) return nullptr;
    return new everlong::cuda::CudaKernels(weight_type);
  } catch (const std::bad_alloc&) {
    *why = "the GPU's memory does not suffice to begin with";
    return nullptr;
  } catch (const std::exception& error) {
    *why = error.what();
    return nullptr;
  }
}
