#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/index_keys.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/select.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/host_memory.h"
#include "kernels/kernels.h"
#include "kernels/kv_address.h"
#include "kernels/sampling.h"

namespace everlong {
namespace {

// Arguments name the operations of this backend; the classes and functions beneath are in
// everlong::cpu.
class CpuKernels : public Kernels {
 public:
  explicit CpuKernels(int num_threads)
      : pool_(num_threads), samplers_(pool_.num_threads(), RowSampler(cpu::SumExp)) {}

  std::string_view name() const override { return "cpu"; }
  DType activation_type() const override { return DType::kF32; }
  std::span<const DType> kv_types() const override {
    static constexpr DType kTypes[] = {DType::kF16, DType::kBF16, DType::kF32};
    return kTypes;
  }
  std::optional<MemoryBytes> memory() const override { return std::nullopt; }

  void* Allocate(int64_t bytes) override { return memory_.Allocate(bytes); }
  void Free(void* device) override { memory_.Free(device); }
  void Upload(void* device, const void* host, int64_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void Download(void* host, const void* device, int64_t bytes) override {
    std::memcpy(host, device, bytes);
  }

  Matrix LoadMatrix(std::span<const HostMatrix> parts) override {
    EVERLONG_CHECK(!parts.empty());
    int64_t rows = 0;
    for (const HostMatrix& part : parts) rows += part.rows;
    const HostMatrix& first = parts.front();
    void* packed = TakeWeights(cpu::PackedBytes(rows, first.cols, first.type));
    cpu::PackMatrix(parts, packed, pool_);
    return {.data = packed, .rows = rows, .cols = first.cols, .type = first.type};
  }

  void BeginStep(const StepLayout& layout) override { step_.Assign(layout); }
  void Embed(const EmbedArgs& args) override { cpu::Embed(args, step_.tokens(), pool_); }
  void RmsNorm(const RmsNormArgs& args) override { cpu::RmsNorm(args, step_, pool_); }
  void MatMul(const MatMulArgs& args) override { matmul_.Run(args, pool_); }
  void StoreKv(const StoreKvArgs& args) override {
    EVERLONG_CHECK(args.cache.type < DType::kF8);
    cpu::StoreKv(args, step_, pool_);
  }

  void IndexKeys(const IndexKeysArgs& args) override { index_keys_.Run(args, step_, pool_); }
  void Select(const SelectArgs& args) override { select_.Run(args, step_, pool_); }
  void Attention(const AttentionArgs& args) override { attention_.Run(args, step_, pool_); }
  void GatedActivation(const GatedActivationArgs& args) override {
    cpu::ActivateGated(args, pool_);
  }

  void Sample(const SampleArgs& args) override {
    for (RowSampler& sampler : samplers_) sampler.Reserve(args);
    pool_.Run(args.rows, [&](int64_t row, int thread) {
      samplers_[thread].Sample(args, static_cast<int32_t>(row));
    });
  }

  void CopyPages(const CopyPagesArgs& args) override {
    const KvCache& cache = args.cache;
    const KeyIndex& index = args.index;
    pool_.Run(args.num_layers * args.num_pages, [&](int64_t task, int) {
      const int64_t layer = task / args.num_pages;
      const int64_t from = args.from[task % args.num_pages];
      const int64_t to = args.to[task % args.num_pages];
      std::memcpy(KeyAddress(cache, layer, to, 0, 0), KeyAddress(cache, layer, from, 0, 0),
                  cache.PageBytes());
      if (index.base == nullptr) return;
      std::memcpy(IndexHeadAt(index, layer, to, 0).codes, IndexHeadAt(index, layer, from, 0).codes,
                  index.PageBytes());
      std::memcpy(RangesAt(index, layer, to, 0).lows, RangesAt(index, layer, from, 0).lows,
                  index.RangePageBytes());
    });
  }

  void Sync() override {}

 private:
  // Weights are back to back in large blocks, because only those get huge pages: with small ones
  // the weights of a step have more of them than a core has translations for.
  void* TakeWeights(int64_t bytes) {
    constexpr int64_t kBlockBytes = int64_t{64} << 20;
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > weights_left_) {
      weights_left_ = std::max(bytes, kBlockBytes);
      weights_ = static_cast<std::byte*>(Allocate(weights_left_));
    }
    void* taken = weights_;
    weights_ += bytes;
    weights_left_ -= bytes;
    return taken;
  }

  HostMemory memory_;
  std::byte* weights_ = nullptr;
  int64_t weights_left_ = 0;
  cpu::ThreadPool pool_;
  cpu::Step step_;
  cpu::MatMul matmul_;
  cpu::Attention attention_;
  cpu::IndexKeys index_keys_;
  cpu::Select select_;
  std::vector<RowSampler> samplers_;  // [num_threads]
};

}  // namespace

std::unique_ptr<Kernels> MakeCpuKernels(int num_threads) {
  return std::make_unique<CpuKernels>(num_threads);
}

}  // namespace everlong
