// What the CPU kernels reach of this machine: of its memory bandwidth where weights or keys are
// read once, of OpenBLAS's sgemm where they are read from caches. Both sides of a ratio run in
// turns, so that whatever else the machine does meets both.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measure.h"
#include "cblas.h"
#include "fmt/format.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/dtype.h"
#include "kernels/kernels.h"

namespace everlong {
namespace {

struct WeightTypes {
  DType matrices;
  DType head;
};

struct Geometry {
  std::string name;
  int32_t hidden;
  int32_t intermediate;
  int32_t layers;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t vocab;
  std::vector<WeightTypes> types;

  int32_t q_width() const { return q_heads * head_dim; }
  int32_t qkv_width() const { return (q_heads + 2 * kv_heads) * head_dim; }
};

constexpr WeightTypes kBF16 = {DType::kBF16, DType::kBF16};
constexpr WeightTypes kF32 = {DType::kF32, DType::kF32};
// Of the checkpoints that people have: bartowski's and llama.cpp's mixtures, about.
constexpr WeightTypes kQ4_1 = {DType::kQ4_1, DType::kQ8_0};
constexpr WeightTypes kQ4K = {DType::kQ4K, DType::kQ6K};

const Geometry kGeometries[] = {
    {"needle-7m", 256, 768, 8, 4, 2, 64, 4096, {kBF16, kF32}},
    {"SmolLM2-135M", 576, 1536, 30, 9, 3, 64, 49152, {kQ4_1, kBF16, kF32}},
    {"Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, 128256, {kQ4K, kBF16, kF32}},
};

std::string TypeName(DType type) {
  constexpr const char* kNames[] = {"f32",  "f16",  "bf16", "Q8_0", "Q4_0", "Q4_1",
                                    "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
  return kNames[static_cast<int>(type)];
}

class Bench {
 public:
  explicit Bench(int threads) : kernels_(MakeCpuKernels(threads)), pool_(threads) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    for (float& value : noise_) value = normal(random);
  }

  void MatMuls(const Geometry& g);
  void QuantizedTypes();
  void Attention(const Geometry& g);
  void DecodeStep(const Geometry& g, const WeightTypes& types);
  int threads() const { return pool_.num_threads(); }

 private:
  struct Layer {
    Matrix qkv, attention_out, gate_up, down;
  };

  float* Floats(int64_t count) {
    auto* floats = static_cast<float*>(kernels_->Allocate(count * 4));
    for (int64_t i = 0; i < count; ++i) floats[i] = noise_[i % noise_.size()];
    return floats;
  }
  Matrix Weights(int64_t rows, int64_t cols, DType type);
  void MatVec(const Geometry& g, const std::string& label, int64_t n, int64_t k, DType type);
  void Gemm(const Geometry& g, const std::string& label, int64_t n, int64_t k, DType type);
  void BeginStep(int64_t context, int32_t tokens);
  void Decode(const Geometry& g, int64_t context);
  void Prefill(const Geometry& g, int64_t context);
  AttentionArgs AttentionOf(const Geometry& g, int64_t positions, int32_t tokens);

  std::unique_ptr<Kernels> kernels_;
  cpu::ThreadPool pool_;  // of Reader; idle while kernels_ work
  std::vector<float> noise_ = std::vector<float>(100003);
  std::vector<int32_t> pages_;
  std::vector<float> inv_freq_;
};

Matrix Bench::Weights(int64_t rows, int64_t cols, DType type) {
  std::vector<std::byte> bytes(rows * RowBytes(type, cols));
  for (size_t i = 0; i < bytes.size(); ++i) {
    // Below 0.01 as a scale, whatever the layout.
    bytes[i] = std::bit_cast<std::byte>(static_cast<uint8_t>(i * 5 % 29));
  }
  for (int64_t i = 0; !IsQuantized(type) && i < rows * cols; ++i) {
    const float value = noise_[i % noise_.size()];
    const uint16_t half = F32ToBF16(value);
    const void* from = type == DType::kF32 ? static_cast<const void*>(&value) : &half;
    std::memcpy(&bytes[i * ByteSize(type)], from, ByteSize(type));
  }
  const HostMatrix part = {bytes.data(), rows, cols, type};
  return kernels_->LoadMatrix({&part, 1});
}

// A matrix is followed by others of its kind, as many as the model has or as exceed all caches.
void Bench::MatVec(const Geometry& g, const std::string& label, int64_t n, int64_t k, DType type) {
  constexpr int64_t kBeyondCaches = 256 << 20;
  const int64_t bytes = n * RowBytes(type, k);
  const int64_t copies = label == "head" ? 1 : g.layers;
  const int64_t matrices = std::clamp<int64_t>(kBeyondCaches / bytes, 1, copies);
  std::vector<Matrix> w;
  for (int64_t i = 0; i < matrices; ++i) w.push_back(Weights(n, k, type));
  Reader reader(pool_, bytes * matrices);
  for (const int32_t m : {1, 4, 16}) {
    float* x = Floats(m * k);
    float* out = Floats(m * n);
    const auto [ours, read] = MedianSeconds(
        [&] {
          for (const Matrix& matrix : w) {
            kernels_->MatMul({.w = matrix,
                              .x = x,
                              .out = out,
                              .x_stride = k,
                              .out_stride = n,
                              .rows = m,
                              .mode = MatMulOut::kF32});
          }
        },
        [&] { reader.Read(); });
    const auto total = static_cast<double>(bytes * matrices);
    fmt::print("| {} | {} {}x{} | {} | {} | {:.1f} | {:.1f} | {:.0f} % | {:.1f} |\n", g.name, label,
               n, k, TypeName(type), m, total / ours / 1e9, total / read / 1e9, 100 * read / ours,
               2.0 * m * n * k * matrices / ours / 1e9);
    kernels_->Free(x);
    kernels_->Free(out);
  }
}

void Bench::Gemm(const Geometry& g, const std::string& label, int64_t n, int64_t k, DType type) {
  constexpr int32_t kRows = 512;
  const Matrix w = Weights(n, k, type);
  float* x = Floats(kRows * k);
  float* out = Floats(kRows * n);
  float* blas_w = Floats(n * k);
  const auto [ours, blas] = MedianSeconds(
      [&] {
        kernels_->MatMul({.w = w,
                          .x = x,
                          .out = out,
                          .x_stride = k,
                          .out_stride = n,
                          .rows = kRows,
                          .mode = MatMulOut::kF32});
      },
      [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kRows, static_cast<int>(n),
                    static_cast<int>(k), 1.0f, x, static_cast<int>(k), blas_w, static_cast<int>(k),
                    0.0f, out, static_cast<int>(n));
      });
  const double gigaflop = 2.0 * kRows * static_cast<double>(n * k) / 1e9;
  fmt::print("| {} | {} {}x{} | {} | {:.0f} | {:.0f} | {:.0f} % |\n", g.name, label, n, k,
             TypeName(type), gigaflop / ours, gigaflop / blas, 100 * blas / ours);
  for (float* memory : {x, out, blas_w}) kernels_->Free(memory);
}

void PrintMatVecHeader() {
  fmt::print(
      "\n| model | matrix | type | m | GB/s | read GB/s | of it | GFLOP/s |\n"
      "|---|---|---|---|---|---|---|---|\n");
}

void PrintGemmHeader() {
  fmt::print(
      "\n| model | matrix, m = 512 | type | GFLOP/s | sgemm | ratio |\n"
      "|---|---|---|---|---|---|\n");
}

void Bench::MatMuls(const Geometry& g) {
  const std::vector<std::tuple<std::string, int64_t, int64_t>> shapes = {
      {"qkv", g.qkv_width(), g.hidden},
      {"o", g.hidden, g.q_width()},
      {"gate_up", 2 * g.intermediate, g.hidden},
      {"down", g.hidden, g.intermediate},
      {"head", g.vocab, g.hidden}};
  PrintMatVecHeader();
  for (const auto& [label, n, k] : shapes) {
    for (const WeightTypes& types : g.types) {
      MatVec(g, label, n, k, label == "head" ? types.head : types.matrices);
    }
  }
  PrintGemmHeader();
  for (const auto& [label, n, k] : shapes) {
    if (label == "head") continue;  // prefill computes no logits
    for (const WeightTypes& types : g.types) Gemm(g, label, n, k, types.matrices);
  }
}

void Bench::QuantizedTypes() {
  const Geometry& g = kGeometries[2];
  const auto each = [&](auto&& measure) {
    for (int i = static_cast<int>(DType::kQ8_0); i <= static_cast<int>(DType::kQ6K); ++i) {
      measure(static_cast<DType>(i));
    }
  };
  PrintMatVecHeader();
  each([&](DType type) { MatVec(g, "qkv", g.qkv_width(), g.hidden, type); });
  PrintGemmHeader();
  each([&](DType type) { Gemm(g, "qkv", g.qkv_width(), g.hidden, type); });
}

// One sequence of `tokens` new tokens after `context`, attended densely.
void Bench::BeginStep(int64_t context, int32_t tokens) {
  const int64_t num_pages = (context + tokens + kPageTokens - 1) / kPageTokens;
  pages_.resize(num_pages);
  for (int64_t i = 0; i < num_pages; ++i) pages_[i] = static_cast<int32_t>(i);
  std::shuffle(pages_.begin(), pages_.end(), std::mt19937(1));
  const std::vector<int32_t> ids(tokens, 1);
  const int32_t query_begin[] = {0, tokens};
  const int64_t page_begin[] = {0, num_pages};
  const int32_t output_rows[] = {tokens - 1};
  const QueryBlock block = {.num_rows = tokens};
  const AttentionPlan plan = {.num_blocks = 1, .blocks = &block};
  kernels_->BeginStep({.num_sequences = 1,
                       .num_tokens = tokens,
                       .tokens = ids.data(),
                       .query_begin = query_begin,
                       .context_begin = &context,
                       .pages = pages_.data(),
                       .page_begin = page_begin,
                       .num_outputs = 1,
                       .output_rows = output_rows,
                       .num_plans = 1,
                       .plans = &plan});
}

// Layers of a cache for so many positions, filled; and queries.
AttentionArgs Bench::AttentionOf(const Geometry& g, int64_t positions, int32_t tokens) {
  constexpr int64_t kLayers = 2;
  inv_freq_.clear();
  for (int i = 0; i < g.head_dim / 2; ++i) {
    inv_freq_.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / g.head_dim));
  }
  KvCache cache = {.kv_heads = g.kv_heads, .head_dim = g.head_dim, .type = DType::kBF16};
  cache.layer_stride_bytes = (positions + kPageTokens - 1) / kPageTokens * cache.PageBytes();
  cache.base = kernels_->Allocate(kLayers * cache.layer_stride_bytes);
  auto* halves = static_cast<uint16_t*>(cache.base);
  for (int64_t i = 0; i < kLayers * cache.layer_stride_bytes / 2; ++i) {
    halves[i] = F32ToBF16(noise_[i % noise_.size()]);
  }
  return {.cache = cache,
          .rope = {.inv_freq = inv_freq_.data()},
          .q = Floats(int64_t{tokens} * g.qkv_width()),
          .out = Floats(int64_t{tokens} * g.q_width()),
          .q_stride = g.qkv_width(),
          .q_heads = g.q_heads,
          .scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim))};
}

void Bench::Decode(const Geometry& g, int64_t context) {
  AttentionArgs args = AttentionOf(g, context, 1);
  const int64_t bytes = context / kPageTokens * args.cache.PageBytes();
  BeginStep(context - 1, 1);
  // Two layers in turn: a layer's keys are read once per step.
  Reader reader(pool_, 2 * bytes);
  const auto [ours, read] = MedianSeconds(
      [&] {
        for (args.layer = 0; args.layer < 2; ++args.layer) kernels_->Attention(args);
      },
      [&] { reader.Read(); });
  fmt::print("| {} | decode | {} | {:.3f} | {:.1f} | {:.1f} | {:.0f} % | |\n", g.name, context,
             1e3 * ours / 2, 2 * bytes / ours / 1e9, 2 * bytes / read / 1e9, 100 * read / ours);
  kernels_->Free(args.cache.base);
}

void Bench::Prefill(const Geometry& g, int64_t context) {
  constexpr int32_t kTokens = 512;
  const AttentionArgs args = AttentionOf(g, context + kTokens, kTokens);
  BeginStep(context, kTokens);
  const double keys = kTokens * (static_cast<double>(context) + (kTokens + 1) / 2.0);
  const double gigaflop = 4.0 * g.q_width() * keys / 1e9;
  const int n = 1024;
  float* square = Floats(3 * n * n);
  const auto [ours, blas] =
      MedianSeconds([&] { kernels_->Attention(args); },
                    [&] {
                      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, n, 1.0f, square, n,
                                  square + n * n, n, 0.0f, square + 2 * n * n, n);
                    });
  const double blas_rate = 2.0 * n * n * n / 1e9 / blas;
  fmt::print("| {} | 512 queries | {} | {:.1f} | | {:.0f} | {:.0f} % | {:.0f} |\n", g.name,
             context + kTokens, 1e3 * ours, blas_rate, 100 * gigaflop / ours / blas_rate,
             gigaflop / ours);
  kernels_->Free(args.cache.base);
  kernels_->Free(square);
}

void Bench::Attention(const Geometry& g) {
  for (const int64_t context : {4096, 32768, 131072}) Decode(g, context);
  for (const int64_t context : {0, 3584, 32256}) Prefill(g, context);
}

// The calls of engine/model.cc for one token at a short context.
void Bench::DecodeStep(const Geometry& g, const WeightTypes& types) {
  constexpr int64_t kContext = 128;
  std::vector<Layer> layers;
  int64_t bytes = 0;
  const auto load = [&](int64_t rows, int64_t cols, DType type) {
    bytes += rows * RowBytes(type, cols);
    return Weights(rows, cols, type);
  };
  const DType type = types.matrices;
  for (int32_t i = 0; i < g.layers; ++i) {
    layers.push_back({load(g.qkv_width(), g.hidden, type), load(g.hidden, g.q_width(), type),
                      load(2 * g.intermediate, g.hidden, type),
                      load(g.hidden, g.intermediate, type)});
  }
  const Matrix head = load(g.vocab, g.hidden, types.head);
  AttentionArgs attention = AttentionOf(g, kContext, 1);
  attention.cache.layer_stride_bytes = 0;
  float* residual = Floats(g.hidden);
  float* normed = Floats(g.hidden);
  float* weight = Floats(g.hidden);
  float* qkv = Floats(g.qkv_width());
  float* attended = Floats(g.q_width());
  float* gate_up = Floats(2 * g.intermediate);
  float* gated = Floats(g.intermediate);
  float* logits = Floats(g.vocab);
  attention.q = qkv;
  attention.out = attended;
  const auto norm = [&] {
    kernels_->RmsNorm({.x = residual,
                       .weight = weight,
                       .out = normed,
                       .rows = 1,
                       .width = g.hidden,
                       .eps = 1e-5f});
  };
  const auto matmul = [&](const Matrix& w, const float* x, float* out, MatMulOut mode) {
    kernels_->MatMul({.w = w,
                      .x = x,
                      .out = out,
                      .x_stride = w.cols,
                      .out_stride = w.rows,
                      .rows = 1,
                      .mode = mode});
  };
  const SampleParams params;
  int32_t token;
  float logprob;
  const auto step = [&] {
    BeginStep(kContext - 1, 1);
    kernels_->Embed({.table = head, .out = residual});
    for (const Layer& layer : layers) {
      norm();
      matmul(layer.qkv, normed, qkv, MatMulOut::kActivations);
      kernels_->StoreKv({.cache = attention.cache, .qkv = qkv, .q_heads = g.q_heads});
      kernels_->Attention(attention);
      matmul(layer.attention_out, attended, residual, MatMulOut::kAddF32);
      norm();
      matmul(layer.gate_up, normed, gate_up, MatMulOut::kActivations);
      kernels_->GatedActivation(
          {.gate_up = gate_up, .out = gated, .rows = 1, .width = g.intermediate});
      matmul(layer.down, gated, residual, MatMulOut::kAddF32);
    }
    norm();
    matmul(head, normed, logits, MatMulOut::kF32);
    kernels_->Sample({.logits = logits,
                      .params = &params,
                      .tokens = &token,
                      .logprobs = &logprob,
                      .rows = 1,
                      .vocab = g.vocab});
  };
  Reader reader(pool_, bytes);
  const auto [ours, read] = MedianSeconds(step, [&] { reader.Read(); });
  fmt::print("| {} | {} | {:.1f} | {:.3f} | {:.1f} | {:.1f} | {:.1f} | {:.0f} % |\n", g.name,
             TypeName(type), bytes / 1e6, 1e3 * ours, 1 / ours, bytes / ours / 1e9,
             bytes / read / 1e9, 100 * read / ours);
}

void PrintSteps(int threads, const std::vector<Geometry>& geometries) {
  fmt::print(
      "\n| model | type | weights MB | ms / step | tok/s | GB/s | read GB/s | of it |\n"
      "|---|---|---|---|---|---|---|---|\n");
  for (const Geometry& g : geometries) {
    for (const WeightTypes& types : g.types) Bench(threads).DecodeStep(g, types);
  }
}

void PrintAttention(int threads, const std::vector<Geometry>& geometries) {
  fmt::print(
      "\n| heads of | attention | context | ms / layer | GB/s | read GB/s or sgemm GFLOP/s | of it "
      "| GFLOP/s |\n|---|---|---|---|---|---|---|---|\n");
  for (const Geometry& g : geometries) Bench(threads).Attention(g);
}

void Run(int threads, std::string_view section, std::string_view model) {
  std::vector<Geometry> geometries;
  for (const Geometry& g : kGeometries) {
    if (model.empty() || model == g.name) geometries.push_back(g);
  }
  openblas_set_num_threads(Bench(threads).threads());
  fmt::print("{} threads; OpenBLAS: {}\n", openblas_get_num_threads(), openblas_get_corename());
  if (section.empty() || section == "step") PrintSteps(threads, geometries);
  if (section.empty() || section == "attention") PrintAttention(threads, geometries);
  if (section.empty() || section == "types") Bench(threads).QuantizedTypes();
  if (section.empty() || section == "matmul") {
    for (const Geometry& g : geometries) Bench(threads).MatMuls(g);
  }
}

}  // namespace
}  // namespace everlong

// Usage: everlong_kernel_bench [threads, 0: one per core] [step | attention | matmul | types]
// [model]
int main(int argc, char** argv) {
  // OpenBLAS reads this before main; a comparison is with what it would choose by itself.
  if (std::getenv("OPENBLAS_CORETYPE") != nullptr) {
    unsetenv("OPENBLAS_CORETYPE");
    execv("/proc/self/exe", argv);
  }
  everlong::Run(argc > 1 ? std::atoi(argv[1]) : 0, argc > 2 ? argv[2] : "",
                argc > 3 ? argv[3] : "");
}
