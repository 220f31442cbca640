// What attention costs on a GPU, with the heads of Llama-3.1-8B: dense, over a cached selection,
// with what selecting costs, and of a prompt's end. bench/cuda_attention times PyTorch's beside it.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/attention_plan.h"
#include "engine/attention_policy.h"
#include "fmt/format.h"
#include "kernels/dtype.h"
#include "kernels/kernels.h"

namespace everlong {
namespace {

constexpr int32_t kQHeads = 32;
constexpr int32_t kKvHeads = 8;
constexpr int32_t kHeadDim = 128;
constexpr int64_t kRowWidth = int64_t{kQHeads + 2 * kKvHeads} * kHeadDim;
constexpr int64_t kTrainedLength = 131072;
// A step's layers read more than an L2 cache holds, and each what no other does shortly before.
// To fit a device, they overlap: a layer's cache begins kOverlap-th of one after the last.
constexpr int32_t kLayers = 32;
constexpr int64_t kOverlap = 16;
constexpr int32_t kFillTokens = 32768;    // stored at a time
constexpr int32_t kPromptTokens = 32768;  // the last of a prompt, read in chunks
constexpr int32_t kChunkTokens = 8192;

// Keys and values of one sequence, random, stored and indexed by the backend itself.
class Context {
 public:
  Context(Kernels& kernels, int64_t length, DType type);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Starts a step of tokens [begin, end); a single one is decoded.
  void Begin(int64_t begin, int64_t end, const AttentionPlan& plan);
  void Select(int32_t layer);
  void Attend(int32_t layer);
  // Room for the lists of `slots` query blocks.
  void ReserveSlots(int32_t slots, int32_t capacity);

  int64_t length() const { return length_; }
  int64_t kv_bytes() const { return length_ * kKvHeads * cache_.BlockBytes() / kBlockTokens; }
  int64_t token_bytes() const { return kKvHeads * cache_.BlockBytes() / kBlockTokens; }

 private:
  void Fill();
  void* Allocate(int64_t bytes);

  Kernels& kernels_;
  int64_t length_;
  KvCache cache_;
  KeyIndex index_;
  Selection selection_;
  std::vector<int32_t> pages_;
  std::vector<int32_t> tokens_;
  std::vector<float> inv_freq_;
  std::vector<void*> allocated_;
  std::byte* qkv_;
  std::byte* out_;
};

Context::Context(Kernels& kernels, int64_t length, DType type)
    : kernels_(kernels), length_(length), tokens_(kFillTokens) {
  const int64_t num_pages = length / kPageTokens + 1;
  pages_.resize(num_pages);
  std::iota(pages_.begin(), pages_.end(), 0);
  std::shuffle(pages_.begin(), pages_.end(), std::mt19937(1));
  for (int i = 0; i < kHeadDim / 2; ++i) {
    inv_freq_.push_back(std::pow(500000.0f, -2.0f * static_cast<float>(i) / kHeadDim));
  }
  const int64_t layer_pages = num_pages / kOverlap;
  const int64_t all_pages = num_pages + (kLayers - 1) * layer_pages;
  cache_ = {.kv_heads = kKvHeads, .head_dim = kHeadDim, .type = type};
  cache_.layer_stride_bytes = layer_pages * cache_.PageBytes();
  cache_.base = Allocate(all_pages * cache_.PageBytes());
  index_ = {.kv_heads = kKvHeads, .head_dim = kHeadDim};
  index_.layer_stride_bytes = layer_pages * index_.PageBytes();
  index_.base = Allocate(all_pages * index_.PageBytes());
  index_.range_stride_bytes = layer_pages * index_.RangePageBytes();
  index_.ranges = Allocate(all_pages * index_.RangePageBytes());
  qkv_ = static_cast<std::byte*>(Allocate(kFillTokens * kRowWidth * 2));
  out_ = static_cast<std::byte*>(Allocate(int64_t{kFillTokens} * kQHeads * kHeadDim * 2));
  Fill();
}

Context::~Context() {
  kernels_.Sync();
  for (void* block : allocated_) kernels_.Free(block);
}

void* Context::Allocate(int64_t bytes) {
  return allocated_.emplace_back(kernels_.Allocate(bytes));
}

void Context::ReserveSlots(int32_t slots, int32_t capacity) {
  selection_ = {.layers = kLayers, .slots = slots, .kv_heads = kKvHeads, .capacity = capacity};
  const int64_t lists = selection_.List(kLayers, 0, 0, 0);
  selection_.blocks = static_cast<int32_t*>(Allocate(lists * capacity * 4));
  selection_.counts = static_cast<int32_t*>(Allocate(lists * 4));
  selection_.reuse = static_cast<int64_t*>(Allocate(selection_.Reuse(slots, 0, 0) * 8));
}

void Context::Fill() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> noise(100003);  // a prime: rows do not repeat
  for (uint16_t& value : noise) value = F32ToBF16(normal(random));
  std::vector<uint16_t> qkv(kFillTokens * kRowWidth);
  for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = noise[i % noise.size()];
  kernels_.Upload(qkv_, qkv.data(), static_cast<int64_t>(qkv.size()) * 2);
  for (int64_t begin = 0; begin <= length_; begin += kFillTokens) {
    Begin(begin, std::min(begin + kFillTokens, length_ + 1), {});
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      kernels_.StoreKv({.cache = cache_, .qkv = qkv_, .layer = layer, .q_heads = kQHeads});
      kernels_.IndexKeys({.cache = cache_, .index = index_, .layer = layer});
    }
  }
  kernels_.Sync();
}

void Context::Begin(int64_t begin, int64_t end, const AttentionPlan& plan) {
  const auto num_tokens = static_cast<int32_t>(end - begin);
  const int32_t query_begin[] = {0, num_tokens};
  const int64_t page_begin[] = {0, static_cast<int64_t>(pages_.size())};
  kernels_.BeginStep({.num_sequences = 1,
                      .num_tokens = num_tokens,
                      .num_decode = num_tokens == 1 ? 1 : 0,
                      .tokens = tokens_.data(),
                      .query_begin = query_begin,
                      .context_begin = &begin,
                      .pages = pages_.data(),
                      .page_begin = page_begin,
                      .num_plans = 1,
                      .plans = &plan});
}

void Context::Select(int32_t layer) {
  kernels_.Select({.cache = cache_,
                   .index = index_,
                   .selection = selection_,
                   .rope = {.inv_freq = inv_freq_.data()},
                   .q = qkv_,
                   .q_stride = kRowWidth,
                   .layer = layer,
                   .q_heads = kQHeads});
}

void Context::Attend(int32_t layer) {
  kernels_.Attention({.cache = cache_,
                      .selection = selection_,
                      .rope = {.inv_freq = inv_freq_.data()},
                      .q = qkv_,
                      .out = out_,
                      .q_stride = kRowWidth,
                      .layer = layer,
                      .q_heads = kQHeads,
                      .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim))});
}

// Median of `runs` times, after as many as it takes for graphs to be captured.
double MedianSeconds(Kernels& kernels, int runs, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = -3; i < runs; ++i) {
    kernels.Sync();
    const auto begin = std::chrono::steady_clock::now();
    work();
    kernels.Sync();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (i >= 0) seconds.push_back(took.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[runs / 2];
}

void PrintRow(const std::string& what, int64_t length, double seconds, int64_t bytes,
              double bandwidth) {
  const double rate = static_cast<double>(bytes) / seconds;
  const std::string reads =
      bytes == 0 ? "| |" : fmt::format("{:.0f} | {:.0f} % |", rate / 1e9, 100 * rate / bandwidth);
  fmt::print("| {} | {} | {:.1f} | {} |\n", what, length, 1e6 * seconds, reads);
  std::fflush(stdout);
}

// Of a prompt's chunk, whose products are counted and not its bytes.
void PrintPromptRow(const std::string& what, int64_t length, double seconds, double flops) {
  fmt::print("| {} | {} | {:.1f} | | | {:.0f} |\n", what, length, 1e6 * seconds,
             flops / seconds / 1e12);
  std::fflush(stdout);
}

// Of a plan whose first token is at position `begin`, where selections are full.
double Flops(const AttentionPlan& plan, int64_t begin) {
  double pairs = 0.0;  // of a query and a key that it reads
  for (int32_t b = 0; b < plan.num_blocks; ++b) {
    const QueryBlock& block = plan.blocks[b];
    const int64_t selected =
        block.select < 0 ? 0 : plan.selects[block.select].keep_blocks * kBlockTokens;
    const int64_t first = begin + block.first_row - block.window_begin + 1;
    const double mean =
        static_cast<double>(block.num_sinks + selected + first) + 0.5 * (block.num_rows - 1);
    pairs += mean * block.num_rows;
  }
  return 4.0 * kQHeads * kHeadDim * pairs;
}

void PrintDense(Kernels& kernels, Context& context, double bandwidth) {
  const QueryBlock block = {.num_rows = 1};
  const AttentionPlan plan = {.num_blocks = 1, .blocks = &block};
  const double seconds = MedianSeconds(kernels, 9, [&] {
    context.Begin(context.length(), context.length() + 1, plan);
    for (int32_t layer = 0; layer < kLayers; ++layer) context.Attend(layer);
  });
  PrintRow("dense, true positions", context.length(), seconds / kLayers, context.kv_bytes(),
           bandwidth);
}

// `sieve`: of the scan; 0: the default.
AttentionPolicy PolicyOf(SelectorName selector, int32_t sieve = 0) {
  AttentionConfig config = {.all = {.mode = AttentionMode::kInfiniteHip,
                                    .selector = selector,
                                    .positions = PositionRule::kClipped}};
  if (selector == SelectorName::kScan && sieve > 0) config.all.sieve = sieve;
  const auto policy = MakePolicy(config, kLayers, kTrainedLength);
  if (!policy.ok()) std::abort();
  return *policy;
}

// A number of layers in a step that makes its own cost small beside short kernels'.
constexpr int kRepeats = 4;

// Decode steps from the one that selects anew to the last before the next such.
class SparseDecode {
 public:
  SparseDecode(Kernels& kernels, Context& context, const AttentionPolicy& policy)
      : kernels_(kernels),
        context_(context),
        policy_(policy),
        plans_(std::max(policy_.classes[0].decode.refresh[0], 2)) {
    for (size_t t = 0; t < plans_.size(); ++t) {
      const int64_t position = context.length() - static_cast<int64_t>(plans_.size() - t);
      plans_[t].Clear(/*first_prompt_slot=*/1);
      plans_[t].Add({.policy = &policy_,
                     .decode_begin = context.length() - static_cast<int64_t>(plans_.size())},
                    /*layer_class=*/0, /*sequence=*/0, /*first_row=*/0, position, position + 1);
    }
    context.ReserveSlots(1, std::max(SelectionCapacity(policy_), 1));
  }

  // Of a layer and step, in seconds. `steps`: those that are averaged.
  double Seconds(int first_step, int end_step, bool select, bool attend) {
    Step(0, 1, true, true);  // lists for those that begin with a later stage
    const double seconds = MedianSeconds(kernels_, 9, [&] {
      for (int t = first_step; t < end_step; ++t) Step(t, kRepeats, select, attend);
    });
    return seconds / kRepeats / kLayers / (end_step - first_step);
  }
  int steps() const { return static_cast<int>(plans_.size()); }
  int64_t bytes() const {
    const QueryBlock& block = plans_[1].blocks[0];
    const int64_t window = context_.length() - steps() + 2 - block.window_begin;
    const int64_t selected =
        block.select < 0 ? 0 : plans_[1].selects[block.select].keep_blocks * kBlockTokens;
    return (block.num_sinks + selected + window) * context_.token_bytes();
  }

 private:
  void Step(int t, int repeats, bool select, bool attend) {
    const int64_t position = context_.length() - steps() + t;
    context_.Begin(position, position + 1, plans_[t].plan());
    for (int32_t i = 0; i < repeats * kLayers; ++i) {
      if (select) context_.Select(i % kLayers);
      if (attend) context_.Attend(i % kLayers);
    }
  }

  Kernels& kernels_;
  Context& context_;
  AttentionPolicy policy_;
  std::vector<PlanBuilder> plans_;
};

void PrintSparse(Kernels& kernels, Context& context, const char* name,
                 const AttentionPolicy& policy, double bandwidth) {
  SparseDecode decode(kernels, context, policy);
  const auto print = [&](const char* what, double seconds, int64_t bytes) {
    PrintRow(fmt::format("{}: {}", name, what), context.length(), seconds, bytes, bandwidth);
  };
  print("attention over a cached selection", decode.Seconds(1, 2, false, true), decode.bytes());
  print("selection alone, nothing cached", decode.Seconds(0, 1, true, false), 0);
  print("selection and attention, nothing cached", decode.Seconds(0, 1, true, true), 0);
  print("amortised over its refreshes", decode.Seconds(0, decode.steps(), true, true), 0);
}

// The prompt's last tokens in one layer.
void PrintPrompt(Kernels& kernels, Context& context, double bandwidth) {
  const AttentionPolicy policy = PolicyOf(SelectorName::kHip);
  context.ReserveSlots(kChunkTokens / kQueryBlockTokens + 1, SelectionCapacity(policy));
  double flops = 0.0;
  const auto run = [&](int32_t layer_class, bool select) {
    PlanBuilder plan;
    flops = 0.0;
    for (int64_t begin = context.length() - kPromptTokens; begin < context.length();
         begin += kChunkTokens) {
      plan.Clear(/*first_prompt_slot=*/1);
      plan.Add({.policy = &policy, .decode_begin = context.length()}, layer_class,
               /*sequence=*/0, /*first_row=*/0, begin, begin + kChunkTokens);
      context.Begin(begin, begin + kChunkTokens, plan.plan());
      if (select) context.Select(0);
      context.Attend(0);
      flops += Flops(plan.plan(), begin);
    }
  };
  PrintRow("hip: prompt's last 32768 tokens", context.length(),
           MedianSeconds(kernels, 3, [&] { run(0, true); }), 0, bandwidth);
  PrintRow("the same in the first three layers", context.length(),
           MedianSeconds(kernels, 3, [&] { run(1, true); }), 0, bandwidth);
  const double seconds = MedianSeconds(kernels, 3, [&] { run(0, false); });
  PrintPromptRow("the same without selecting", context.length(), seconds, flops);
}

void PrintDensePrompt(Kernels& kernels, Context& context) {
  const QueryBlock block = {.num_rows = kChunkTokens};
  const AttentionPlan plan = {.num_blocks = 1, .blocks = &block};
  const int64_t begin = context.length() - kChunkTokens;
  const double seconds = MedianSeconds(kernels, 3, [&] {
    context.Begin(begin, context.length(), plan);
    context.Attend(0);
  });
  PrintPromptRow("dense: prompt's last 8192 tokens", context.length(), seconds, Flops(plan, begin));
}

int Main(int argc, char** argv) {
  const double bandwidth = argc > 1 ? std::atof(argv[1]) * 1e9 : 3.04e12;
  const DType type = argc > 2 && std::string(argv[2]) == "f8" ? DType::kF8 : DType::kBF16;
  const std::string what = argc > 3 ? argv[3] : "all";
  const bool all = what == "all";
  const bool only_scan = !all && what != "dense" && what != "prompts";
  std::vector<int64_t> lengths = {131072, 1048576};
  if (argc > 4) lengths = {std::atoll(argv[4])};
  std::string why;
  const std::unique_ptr<Kernels> kernels = MakeCudaKernels(DType::kBF16, &why);
  if (kernels == nullptr) {
    std::cerr << why << "\n";
    return 1;
  }
  fmt::print("{}, {} KV\n\n", kernels->description(), type == DType::kF8 ? "fp8" : "bf16");
  fmt::print(
      "| per layer | context | us | GB/s | of {:.0f} | TFLOP/s |\n|---|---|---|---|---|---|\n",
      bandwidth / 1e9);
  for (const int64_t length : lengths) {
    Context context(*kernels, length, type);
    if (all || what == "dense") PrintDense(*kernels, context, bandwidth);
    if (all) PrintSparse(*kernels, context, "hip", PolicyOf(SelectorName::kHip), bandwidth);
    if (all || only_scan) {
      const int32_t sieve = only_scan ? std::atoi(what.c_str()) : 0;
      PrintSparse(*kernels, context, "scan", PolicyOf(SelectorName::kScan, sieve), bandwidth);
    }
    if (all || what == "prompts") {
      PrintPrompt(*kernels, context, bandwidth);
      PrintDensePrompt(*kernels, context);
    }
  }
  return 0;
}

}  // namespace
}  // namespace everlong

// Usage: everlong_cuda_attention_bench [GB/S OF THE DEVICE'S MEMORY [bf16|f8
// [all|dense|prompts|SIEVE [CONTEXT]]]]. With SIEVE only the scan is timed, sieved so; 0: as by
// default.
int main(int argc, char** argv) {
  return everlong::Main(argc, argv);
}
