// What InfiniteHiP attention costs on a CPU: beside dense attention, beside reading memory, and in
// a whole model as contexts grow.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measure.h"
#include "engine/attention_policy.h"
#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/dtype.h"
#include "kernels/kernels.h"

namespace everlong {
namespace {

struct Geometry {
  std::string name;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int64_t trained_length;
};

const Geometry kGeometries[] = {{"needle-7m", 4, 2, 64, 4096}, {"SmolLM2-135M", 9, 3, 64, 8192}};

// Layers in turns: more than caches hold, as in a model.
constexpr int32_t kLayers = 24;

// Decode steps of one sequence with the default settings.
class Decode {
 public:
  Decode(const Geometry& geometry, int64_t context, int threads);

  // Selection and attention of all layers for as many tokens as a selection serves.
  void Sparse();
  void Dense();    // of one token
  void Refresh();  // one token's selection
  int64_t steps() const { return static_cast<int64_t>(steps_.size()); }
  int64_t index_bytes() const { return kLayers * index_.layer_stride_bytes; }

 private:
  void Fill(int64_t num_pages);
  void BeginStep(int64_t context, int32_t num_tokens, AttentionPlan plan);
  void Select(int32_t layer);
  void Attend(int32_t layer);

  Geometry geometry_;
  int64_t context_;
  std::unique_ptr<Kernels> kernels_;
  AttentionPolicy policy_;
  AttentionPolicy unsieved_;
  std::vector<PlanBuilder> steps_;
  PlanBuilder refresh_;  // that scans all pages
  std::vector<int32_t> pages_;
  std::vector<int32_t> tokens_;
  std::vector<float> inv_freq_;
  KvCache cache_;
  KeyIndex index_;
  Selection selection_;
  float* q_;
  float* out_;
};

AttentionPolicy Policy(const Geometry& geometry, const AttentionOverrides& overrides) {
  const auto policy = MakePolicy({.all = overrides}, kLayers, geometry.trained_length);
  if (!policy.ok()) std::abort();
  return *policy;
}

Decode::Decode(const Geometry& geometry, int64_t context, int threads)
    : geometry_(geometry),
      context_(context),
      kernels_(MakeCpuKernels(threads)),
      policy_(Policy(geometry, {})),
      unsieved_(Policy(geometry, {.sieve = 1})),
      steps_(policy_.classes[0].decode.refresh[0]),
      tokens_(context + steps()) {
  for (int64_t t = 0; t < steps(); ++t) {
    steps_[t].Clear(/*first_prompt_slot=*/1);
    steps_[t].Add({.policy = &policy_, .decode_begin = context}, /*layer_class=*/0, /*sequence=*/0,
                  /*first_row=*/0, context + t, context + t + 1);
  }
  refresh_.Clear(/*first_prompt_slot=*/1);
  refresh_.Add({.policy = &unsieved_, .decode_begin = context}, /*layer_class=*/0, /*sequence=*/0,
               /*first_row=*/0, context, context + 1);
  const int64_t num_pages = (context + steps() + kPageTokens - 1) / kPageTokens;
  for (int64_t i = 0; i < num_pages; ++i) pages_.push_back(static_cast<int32_t>(i));
  for (int i = 0; i < geometry.head_dim / 2; ++i) {
    inv_freq_.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / geometry.head_dim));
  }
  Fill(num_pages);
}

void Decode::Fill(int64_t num_pages) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> noise(100003);
  for (float& value : noise) value = normal(random);
  cache_ = {.kv_heads = geometry_.kv_heads, .head_dim = geometry_.head_dim, .type = DType::kF16};
  cache_.layer_stride_bytes = num_pages * cache_.PageBytes();
  cache_.base = kernels_->Allocate(kLayers * cache_.layer_stride_bytes);
  auto* halves = static_cast<uint16_t*>(cache_.base);
  for (int64_t i = 0; i < kLayers * cache_.layer_stride_bytes / 2; ++i) {
    halves[i] = F32ToF16(noise[i % noise.size()]);
  }
  index_ = {.kv_heads = geometry_.kv_heads, .head_dim = geometry_.head_dim};
  index_.layer_stride_bytes = num_pages * index_.PageBytes();
  index_.base = kernels_->Allocate(kLayers * index_.layer_stride_bytes);
  index_.range_stride_bytes = num_pages * index_.RangePageBytes();
  index_.ranges = kernels_->Allocate(kLayers * index_.range_stride_bytes);
  selection_ = {.layers = kLayers,
                .slots = 1,
                .kv_heads = geometry_.kv_heads,
                .capacity = SelectionCapacity(policy_)};
  const int64_t lists = selection_.List(kLayers, 0, 0, 0);
  selection_.blocks = static_cast<int32_t*>(kernels_->Allocate(lists * selection_.capacity * 4));
  selection_.counts = static_cast<int32_t*>(kernels_->Allocate(lists * 4));
  selection_.reuse =
      static_cast<int64_t*>(kernels_->Allocate(selection_.Reuse(1, 0, 0) * int64_t{8}));
  const int64_t q_bytes = int64_t{geometry_.q_heads} * geometry_.head_dim * 4;
  q_ = static_cast<float*>(kernels_->Allocate(q_bytes));
  out_ = static_cast<float*>(kernels_->Allocate(q_bytes));
  kernels_->Upload(q_, noise.data(), q_bytes);
  // All tokens as if they were new, so that all pages are indexed.
  const QueryBlock all = {.num_rows = static_cast<int32_t>(tokens_.size())};
  BeginStep(0, all.num_rows, {.num_blocks = 1, .blocks = &all});
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    kernels_->IndexKeys({.cache = cache_, .index = index_, .layer = layer});
  }
}

void Decode::BeginStep(int64_t context, int32_t num_tokens, AttentionPlan plan) {
  const int32_t query_begin[] = {0, num_tokens};
  const int64_t page_begin[] = {0, static_cast<int64_t>(pages_.size())};
  kernels_->BeginStep({.num_sequences = 1,
                       .num_tokens = num_tokens,
                       .tokens = tokens_.data(),
                       .query_begin = query_begin,
                       .context_begin = &context,
                       .pages = pages_.data(),
                       .page_begin = page_begin,
                       .num_plans = 1,
                       .plans = &plan});
}

void Decode::Select(int32_t layer) {
  kernels_->Select({.cache = cache_,
                    .index = index_,
                    .selection = selection_,
                    .rope = {.inv_freq = inv_freq_.data()},
                    .q = q_,
                    .q_stride = int64_t{geometry_.q_heads} * geometry_.head_dim,
                    .layer = layer,
                    .q_heads = geometry_.q_heads});
}

void Decode::Attend(int32_t layer) {
  kernels_->Attention({.cache = cache_,
                       .selection = selection_,
                       .rope = {.inv_freq = inv_freq_.data()},
                       .q = q_,
                       .out = out_,
                       .q_stride = int64_t{geometry_.q_heads} * geometry_.head_dim,
                       .layer = layer,
                       .q_heads = geometry_.q_heads,
                       .scale = 1.0f / std::sqrt(static_cast<float>(geometry_.head_dim))});
}

void Decode::Sparse() {
  for (int64_t t = 0; t < steps(); ++t) {
    BeginStep(context_ + t, 1, steps_[t].plan());
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      Select(layer);
      Attend(layer);
    }
  }
}

void Decode::Dense() {
  const QueryBlock block = {.num_rows = 1};
  BeginStep(context_, 1, {.num_blocks = 1, .blocks = &block});
  for (int32_t layer = 0; layer < kLayers; ++layer) Attend(layer);
}

void Decode::Refresh() {
  BeginStep(context_, 1, refresh_.plan());
  for (int32_t layer = 0; layer < kLayers; ++layer) Select(layer);
}

void PrintKernels(int threads) {
  fmt::print(
      "| heads of | context | dense, ms / layer and token | sparse | dense / sparse | scan, GB/s | "
      "read, GB/s | of it |\n|---|---|---|---|---|---|---|---|\n");
  for (const Geometry& geometry : kGeometries) {
    for (const int64_t context : {32768, 131072}) {
      Decode decode(geometry, context, threads);
      cpu::ThreadPool pool(threads);
      Reader reader(pool, decode.index_bytes());
      const auto [sparse, dense] = MedianSeconds([&] { decode.Sparse(); }, [&] { decode.Dense(); });
      const auto [scan, read] = MedianSeconds([&] { decode.Refresh(); }, [&] { reader.Read(); });
      const double sparse_token = sparse / static_cast<double>(decode.steps());
      const auto bytes = static_cast<double>(decode.index_bytes());
      fmt::print("| {} | {} | {:.3f} | {:.3f} | {:.1f} | {:.1f} | {:.1f} | {:.0f} % |\n",
                 geometry.name, context, 1e3 * dense / kLayers, 1e3 * sparse_token / kLayers,
                 dense / sparse_token, bytes / scan / 1e9, bytes / read / 1e9, 100 * read / scan);
    }
  }
}

// Keeps what the last event of a request says.
struct LastEvent : EventSink {
  void OnEvent(Event event) override {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) last = *finished;
  }
  FinishedEvent last;
};

absl::StatusOr<FinishedEvent> Generate(Engine& engine, int64_t prompt_tokens,
                                       int64_t output_tokens) {
  Request request;
  std::mt19937 random(1);
  for (int64_t i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>(random() % engine.config().vocab_size));
  }
  request.sampling.temperature = 0.0f;
  request.max_output_tokens = output_tokens;
  request.ignore_eos = true;
  const auto sink = std::make_shared<LastEvent>();
  RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  while (engine.Step()) continue;
  RETURN_IF_ERROR(sink->last.status);
  return sink->last;
}

// Random tokens: what attention costs does not depend on them.
absl::Status PrintModel(int threads, const std::string& directory,
                        const std::vector<int64_t>& contexts) {
  constexpr int64_t kOutputTokens = 256;
  ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(directory));
  const int64_t longest = *std::max_element(contexts.begin(), contexts.end());
  ASSIGN_OR_RETURN(const auto engine,
                   Engine::Create(std::move(checkpoint), MakeCpuKernels(threads),
                                  {.max_context = longest, .max_batch_tokens = 2048}));
  fmt::print("| context | prompt, s | ms / output token |\n|---|---|---|\n");
  for (const int64_t context : contexts) {
    ASSIGN_OR_RETURN(const FinishedEvent finished,
                     Generate(*engine, context - kOutputTokens, kOutputTokens));
    fmt::print("| {} | {:.2f} | {:.3f} |\n", context,
               absl::ToDoubleSeconds(finished.timings.prefill),
               absl::ToDoubleMilliseconds(finished.timings.decode) / (kOutputTokens - 1));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[1] == "kernels") {
    PrintKernels(std::atoi(argv[1]));
    return 0;
  }
  if (arguments.size() < 3) {
    std::cerr << "usage: everlong_attention_bench THREADS kernels\n"
                 "       everlong_attention_bench THREADS MODEL CONTEXT...\n";
    return 2;
  }
  std::vector<int64_t> contexts;
  for (size_t i = 2; i < arguments.size(); ++i) contexts.push_back(std::atoll(argv[i + 1]));
  const absl::Status status = PrintModel(std::atoi(argv[1]), arguments[1], contexts);
  if (!status.ok()) std::cerr << Message(status) << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace everlong

// Usage: everlong_attention_bench THREADS kernels | MODEL CONTEXT...   (threads 0: one per core)
int main(int argc, char** argv) {
  return everlong::Main(argc, argv);
}
