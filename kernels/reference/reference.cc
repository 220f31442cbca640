// The specification: every operation as its definition reads, scalar, summed in double.
// Nothing is packed or reordered, apart from weights, which are widened to f32 without loss.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/host_memory.h"
#include "kernels/kernels.h"
#include "kernels/sampling.h"

namespace everlong {
namespace {

float ReadElement(const std::byte* from, DType type) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return type == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

void WriteElement(std::byte* to, DType type, float value) {
  if (type == DType::kF32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = type == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

// Where a page holds one head's key of one position; its value is kBlockTokens * head_dim elements
// further on.
std::byte* KeyAddress(const KvCache& cache, int64_t layer, int64_t page, int64_t head,
                      int64_t slot) {
  const int64_t block = head * kPageBlocks + slot / kBlockTokens;
  const int64_t element = block * cache.BlockElements() + slot % kBlockTokens * cache.head_dim;
  return static_cast<std::byte*>(cache.base) + layer * cache.layer_stride_bytes +
         page * cache.PageBytes() + element * ByteSize(cache.type);
}

// x[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i].
void Normalize(const float* x, const float* weight, float* out, int64_t width, float eps) {
  double squares = 0.0;
  for (int64_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
  for (int64_t i = 0; i < width; ++i) out[i] = static_cast<float>(x[i] * factor * weight[i]);
}

void Rotate(std::span<double> x, int64_t position, const Rope& rope) {
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * rope.inv_freq[i];
    const double cos = std::cos(angle) * rope.scale;
    const double sin = std::sin(angle) * rope.scale;
    const double a = x[i];
    const double b = x[i + half];
    x[i] = a * cos - b * sin;
    x[i + half] = b * cos + a * sin;
  }
}

double Dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// One query's softmax over keys that come one at a time (Milakov, Gimelshein: Online normalizer
// calculation for softmax, 2018): weights are kept relative to the largest score so far.
class Query {
 public:
  Query(const float* q, int64_t head_dim, float* out)
      : vector(q, q + head_dim), out_(out), weighted_values_(head_dim) {}

  void Fold(double score, std::span<const double> value) {
    const double max = std::max(max_score_, score);
    const double keep = std::exp(max_score_ - max);
    const double weight = std::exp(score - max);
    for (size_t i = 0; i < value.size(); ++i) {
      weighted_values_[i] = weighted_values_[i] * keep + weight * value[i];
    }
    total_weight_ = total_weight_ * keep + weight;
    max_score_ = max;
  }

  void Finish() const {
    for (size_t i = 0; i < weighted_values_.size(); ++i) {
      out_[i] = static_cast<float>(weighted_values_[i] / total_weight_);
    }
  }

  std::vector<double> vector;

 private:
  float* out_;
  std::vector<double> weighted_values_;
  double max_score_ = -std::numeric_limits<double>::infinity();
  double total_weight_ = 0.0;
};

struct StepSequence {
  int64_t first_token;  // row in the batch
  int64_t num_tokens;
  int64_t context;
  std::vector<int32_t> pages;

  std::byte* Key(const KvCache& cache, int64_t layer, int64_t head, int64_t position) const {
    return KeyAddress(cache, layer, pages[position / kPageTokens], head, position % kPageTokens);
  }
};

// `k`: where the row's key heads begin; value heads follow.
void StoreRow(const StoreKvArgs& args, const float* k, const StepSequence& sequence,
              int64_t position) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t element = ByteSize(cache.type);
  std::vector<float> key(dim);
  for (int64_t h = 0; h < cache.kv_heads; ++h, k += dim) {
    const float* v = k + cache.kv_heads * dim;
    key.assign(k, k + dim);
    if (args.k_norm != nullptr) Normalize(k, args.k_norm, key.data(), dim, args.eps);
    std::byte* to = sequence.Key(cache, args.layer, h, position);
    for (int64_t i = 0; i < dim; ++i) {
      WriteElement(to + i * element, cache.type, key[i]);
      WriteElement(to + (kBlockTokens * dim + i) * element, cache.type, v[i]);
    }
  }
}

// The queries of one sequence that read one KV head. Each key is rotated once and folded into every
// query that sees it, in the order of positions, so memory does not grow with the context.
void Attend(const AttentionArgs& args, const StepSequence& sequence, int64_t kv_head) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const int64_t element = ByteSize(cache.type);
  const int64_t group = args.q_heads / cache.kv_heads;

  std::vector<Query> queries;  // [num_tokens][group]
  for (int64_t i = 0; i < sequence.num_tokens; ++i) {
    const int64_t row = sequence.first_token + i;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      queries.emplace_back(static_cast<const float*>(args.q) + row * args.q_stride + head * dim,
                           dim, static_cast<float*>(args.out) + (row * args.q_heads + head) * dim);
      if (args.rotate) Rotate(queries.back().vector, sequence.context + i, args.rope);
    }
  }

  std::vector<double> key(dim);
  std::vector<double> value(dim);
  for (int64_t position = 0; position < sequence.context + sequence.num_tokens; ++position) {
    const std::byte* from = sequence.Key(cache, args.layer, kv_head, position);
    for (int64_t i = 0; i < dim; ++i) {
      key[i] = ReadElement(from + i * element, cache.type);
      value[i] = ReadElement(from + (kBlockTokens * dim + i) * element, cache.type);
    }
    if (args.rotate) Rotate(key, position, args.rope);
    const int64_t first_seeing = std::max<int64_t>(0, position - sequence.context);
    for (size_t i = first_seeing * group; i < queries.size(); ++i) {
      queries[i].Fold(Dot(queries[i].vector, key) * args.scale, value);
    }
  }
  for (const Query& query : queries) query.Finish();
}

class ReferenceKernels : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }
  DType activation_type() const override { return DType::kF32; }

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
  void Attention(const AttentionArgs& args) override;
  void GatedActivation(const GatedActivationArgs& args) override;
  void Sample(const SampleArgs& args) override;
  void CopyPages(const CopyPagesArgs& args) override;
  void Sync() override {}

 private:
  HostMemory memory_;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> output_rows_;
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
    for (int64_t i = 0; i < part.rows * part.cols; ++i) {
      *out++ = ReadElement(in + i * ByteSize(part.type), part.type);
    }
  }
  return {.data = data, .rows = rows, .cols = first.cols, .type = DType::kF32};
}

void ReferenceKernels::BeginStep(const StepLayout& layout) {
  sequences_.clear();
  for (int32_t s = 0; s < layout.num_sequences; ++s) {
    StepSequence sequence = {
        .first_token = layout.query_begin[s],
        .num_tokens = layout.query_begin[s + 1] - layout.query_begin[s],
        .context = layout.context_begin[s],
        .pages = {layout.pages + layout.page_begin[s], layout.pages + layout.page_begin[s + 1]}};
    const auto room = static_cast<int64_t>(sequence.pages.size()) * kPageTokens;
    EVERLONG_CHECK(sequence.context + sequence.num_tokens <= room);
    sequences_.push_back(std::move(sequence));
  }
  tokens_.assign(layout.tokens, layout.tokens + layout.num_tokens);
  output_rows_.assign(layout.output_rows, layout.output_rows + layout.num_outputs);
}

void ReferenceKernels::Embed(const EmbedArgs& args) {
  const auto* table = static_cast<const float*>(args.table.data);
  float* out = args.out;
  for (const int32_t token : tokens_) {
    EVERLONG_CHECK(token >= 0 && token < args.table.rows);
    out = std::copy_n(table + token * args.table.cols, args.table.cols, out);
  }
}

void ReferenceKernels::RmsNorm(const RmsNormArgs& args) {
  const int64_t width = args.width;
  auto* out = static_cast<float*>(args.out);
  for (int64_t i = 0; i < args.rows; ++i) {
    const int64_t row = args.first_output < 0 ? i : output_rows_[args.first_output + i];
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
  for (const StepSequence& sequence : sequences_) {
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

void ReferenceKernels::Attention(const AttentionArgs& args) {
  EVERLONG_CHECK(args.q_heads % args.cache.kv_heads == 0);
  for (const StepSequence& sequence : sequences_) {
    for (int64_t h = 0; h < args.cache.kv_heads; ++h) Attend(args, sequence, h);
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
    }
  }
}

}  // namespace

std::unique_ptr<Kernels> MakeReferenceKernels() {
  return std::make_unique<ReferenceKernels>();
}

}  // namespace everlong
