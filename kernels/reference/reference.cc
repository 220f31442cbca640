// The specification: every operation as its definition reads, scalar, summed in double.
// Nothing is packed or reordered, apart from weights, which are widened to f32 without loss.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/host_memory.h"
#include "kernels/kernels.h"
#include "kernels/quant.h"
#include "kernels/reference/step.h"
#include "kernels/sampling.h"

namespace everlong {

using reference::StepSequence;

namespace {

// x[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i].
void Normalize(const float* x, const float* weight, float* out, int64_t width, float eps) {
  double squares = 0.0;
  for (int64_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
  for (int64_t i = 0; i < width; ++i) out[i] = static_cast<float>(x[i] * factor * weight[i]);
}

// `k`: where the row's key heads begin; value heads follow.
void StoreRow(const StoreKvArgs& args, const float* k, const StepSequence& sequence,
              int64_t position) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  std::vector<float> key(dim);
  for (int64_t h = 0; h < cache.kv_heads; ++h, k += dim) {
    const float* v = k + cache.kv_heads * dim;
    key.assign(k, k + dim);
    if (args.k_norm != nullptr) Normalize(k, args.k_norm, key.data(), dim, args.eps);
    sequence.Key(cache, args.layer, h, position).Write(key);
    sequence.Value(cache, args.layer, h, position).Write({v, static_cast<size_t>(dim)});
  }
}

class ReferenceKernels : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }
  DType activation_type() const override { return DType::kF32; }
  std::span<const DType> kv_types() const override {
    static constexpr DType kTypes[] = {DType::kF16, DType::kBF16, DType::kF32, DType::kF8};
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

  Matrix LoadMatrix(std::span<const HostMatrix> parts) override;
  void BeginStep(const StepLayout& layout) override;
  void Embed(const EmbedArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override;
  void MatMul(const MatMulArgs& args) override;
  void StoreKv(const StoreKvArgs& args) override;
  void IndexKeys(const IndexKeysArgs& args) override;
  void Select(const SelectArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void GatedActivation(const GatedActivationArgs& args) override;
  void Sample(const SampleArgs& args) override;
  void CopyPages(const CopyPagesArgs& args) override;
  void Sync() override {}

 private:
  HostMemory memory_;
  reference::Step step_;
  RowSampler sampler_;
};

Matrix ReferenceKernels::LoadMatrix(std::span<const HostMatrix> parts) {
  EVERLONG_CHECK(!parts.empty());
  const HostMatrix& first = parts.front();
  int64_t rows = 0;
  for (const HostMatrix& part : parts) {
    EVERLONG_CHECK(part.cols == first.cols && part.type == first.type);
    rows += part.rows;
  }
  auto* data = static_cast<float*>(Allocate(rows * first.cols * ByteSize(DType::kF32)));
  float* out = data;
  for (const HostMatrix& part : parts) {
    const auto* in = static_cast<const std::byte*>(part.data);
    const int64_t row_bytes = RowBytes(part.type, part.cols);
    for (int64_t i = 0; i < part.rows; ++i, in += row_bytes, out += part.cols) {
      DequantizeRow(part.type, in, part.cols, out);
    }
  }
  return {.data = data, .rows = rows, .cols = first.cols, .type = DType::kF32};
}

void ReferenceKernels::BeginStep(const StepLayout& layout) {
  step_ = reference::Step(layout);
}

void ReferenceKernels::Embed(const EmbedArgs& args) {
  const auto* table = static_cast<const float*>(args.table.data);
  float* out = args.out;
  for (const int32_t token : step_.tokens) {
    EVERLONG_CHECK(token >= 0 && token < args.table.rows);
    out = std::copy_n(table + token * args.table.cols, args.table.cols, out);
  }
}

void ReferenceKernels::RmsNorm(const RmsNormArgs& args) {
  const int64_t width = args.width;
  auto* out = static_cast<float*>(args.out);
  for (int64_t i = 0; i < args.rows; ++i) {
    const int64_t row = args.first_output < 0 ? i : step_.output_rows[args.first_output + i];
    Normalize(args.x + row * width, args.weight, out + i * width, width, args.eps);
  }
}

void ReferenceKernels::MatMul(const MatMulArgs& args) {
  const auto* weights = static_cast<const float*>(args.w.data);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* x = static_cast<const float*>(args.x) + r * args.x_stride;
    float* out = static_cast<float*>(args.out) + r * args.out_stride;
    for (int64_t n = 0; n < args.w.rows; ++n) {
      const float* w = weights + n * args.w.cols;
      double sum = args.bias == nullptr ? 0.0 : args.bias[n];
      for (int64_t k = 0; k < args.w.cols; ++k) sum += static_cast<double>(x[k]) * w[k];
      if (args.mode == MatMulOut::kAddF32) sum += out[n];
      out[n] = static_cast<float>(sum);
    }
  }
}

void ReferenceKernels::StoreKv(const StoreKvArgs& args) {
  const int64_t dim = args.cache.head_dim;
  const int64_t row_width = (args.q_heads + int64_t{2} * args.cache.kv_heads) * dim;
  for (const StepSequence& sequence : step_.sequences) {
    for (int64_t i = 0; i < sequence.num_tokens; ++i) {
      float* row = static_cast<float*>(args.qkv) + (sequence.first_token + i) * row_width;
      float* keys = row + args.q_heads * dim;
      for (float* q = row; args.q_norm != nullptr && q < keys; q += dim) {
        Normalize(q, args.q_norm, q, dim, args.eps);
      }
      StoreRow(args, keys, sequence, sequence.context + i);
    }
  }
}

void ReferenceKernels::IndexKeys(const IndexKeysArgs& args) {
  for (const StepSequence& sequence : step_.sequences) reference::IndexPages(args, sequence);
}

void ReferenceKernels::Select(const SelectArgs& args) {
  const reference::StepPlan& plan = step_.plans[args.plan];
  for (const QueryBlock& block : plan.blocks) {
    if (block.slot >= 0) reference::SelectBlocks(args, step_, block, plan.selects[block.select]);
  }
}

void ReferenceKernels::Attention(const AttentionArgs& args) {
  EVERLONG_CHECK(args.q_heads % args.cache.kv_heads == 0);
  for (const QueryBlock& block : step_.plans[args.plan].blocks) {
    for (int64_t h = 0; h < args.cache.kv_heads; ++h) reference::Attend(args, step_, block, h);
  }
}

void ReferenceKernels::GatedActivation(const GatedActivationArgs& args) {
  const int64_t width = args.width;
  for (int64_t r = 0; r < args.rows; ++r) {
    const float* gate = static_cast<const float*>(args.gate_up) + r * 2 * width;
    float* out = static_cast<float*>(args.out) + r * width;
    for (int64_t i = 0; i < width; ++i) {
      const double g = gate[i];
      out[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * gate[width + i]);
    }
  }
}

void ReferenceKernels::Sample(const SampleArgs& args) {
  for (int32_t row = 0; row < args.rows; ++row) sampler_.Sample(args, row);
}

void ReferenceKernels::CopyPages(const CopyPagesArgs& args) {
  const KvCache& cache = args.cache;
  for (int64_t layer = 0; layer < args.num_layers; ++layer) {
    for (int32_t i = 0; i < args.num_pages; ++i) {
      std::memcpy(KeyAddress(cache, layer, args.to[i], 0, 0),
                  KeyAddress(cache, layer, args.from[i], 0, 0), cache.PageBytes());
      if (args.index.base == nullptr) continue;
      std::memcpy(IndexHeadAt(args.index, layer, args.to[i], 0).codes,
                  IndexHeadAt(args.index, layer, args.from[i], 0).codes, args.index.PageBytes());
      std::memcpy(RangesAt(args.index, layer, args.to[i], 0).lows,
                  RangesAt(args.index, layer, args.from[i], 0).lows, args.index.RangePageBytes());
    }
  }
}

}  // namespace

std::unique_ptr<Kernels> MakeReferenceKernels() {
  return std::make_unique<ReferenceKernels>();
}

}  // namespace everlong
