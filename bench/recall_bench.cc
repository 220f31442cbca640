// How much of exact attention's weight falls on the keys that a selector keeps, by layer: real
// prompts, real output, every selector on the same steps.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/attention_presets.h"
#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "kernels/kernels.h"

namespace everlong {
namespace {

constexpr int64_t kOutputTokens = 64;
constexpr int32_t kChunkLayers = 3;  // leading layers that probe at chunks' numbers

// A selector under study: what it selects by, and for how many steps a selection serves.
struct Variant {
  std::string name;
  SelectParams params;
  int32_t bits = 4;
  bool aged = false;  // serves for eight steps
  double recall = 0.0;
  std::vector<double> layers;  // sums over steps
};

SelectParams Scan(int32_t keep, int32_t dilation, int32_t rerank = 1) {
  return {.selector = Selector::kScan, .keep_blocks = keep, .dilation = dilation, .rerank = rerank};
}

SelectParams Sieved(int32_t sieve, SelectParams params) {
  params.sieve = sieve;
  return params;
}

SelectParams Hip(const char* preset) {
  return Preset(preset, 1 << 20)->decode.params;
}

SelectParams EveryKeyLast(SelectParams params) {
  params.stages[params.num_stages - 1].every_key = true;
  return params;
}

// Every key, at the distance at which attention reads it.
SelectParams Exact(int32_t keep) {
  SelectParams params = {.selector = Selector::kHip, .keep_blocks = keep, .num_stages = 1};
  params.stages[0] = {.chunk_tokens = kBlockTokens, .keep_chunks = keep, .every_key = true};
  return params;
}

std::vector<Variant> Variants() {
  return {{"best blocks by the keys themselves", Exact(256)},
          {"the same, for 8 steps", Exact(256), 4, true},
          {"scan, 4 bits", Scan(256, 0), 4},
          {"scan, 4 bits, dilation 1", Scan(256, 1), 4},
          {"scan, 4 bits, for 8 steps", Scan(256, 0), 4, true},
          {"scan, 4 bits, sieve 8", Sieved(8, Scan(256, 0))},
          {"scan, 4 bits, sieve 16", Sieved(16, Scan(256, 0))},
          {"scan, 4 bits, dilation 1, for 8 steps", Scan(256, 1), 4, true},
          {"the same, sieve 8 (default)", Sieved(8, Scan(256, 1)), 4, true},
          {"the same, sieve 16", Sieved(16, Scan(256, 1)), 4, true},
          {"the same, budget 4096", Sieved(8, Scan(512, 1)), 4, true},
          {"scan, 2 bits", Scan(256, 0), 2},
          {"scan, 2 bits, rerank 4", Scan(256, 0, 4), 2},
          {"scan, 1 bit", Scan(256, 0), 1},
          {"scan, 1 bit, rerank 8", Scan(256, 0, 8), 1},
          {"hip 3k", Hip("3k")},
          {"hip 3k, last stage every key", EveryKeyLast(Hip("3k"))},
          {"hip 3k, for 8 steps", Hip("3k"), 4, true},
          {"hip 5k", Hip("5k")}};
}

double Log2(int64_t value) {
  return std::log2(static_cast<double>(value));
}

// Of keys or their copies, for a selection over `tokens` candidates, a KV head and layer.
double BytesRead(const Variant& variant, int64_t tokens, int64_t dim) {
  const double key = 2.0 * static_cast<double>(dim);
  const SelectParams& p = variant.params;
  if (p.selector == Selector::kScan) {
    const double copy =
        static_cast<double>(dim) * variant.bits / 8 + 2 + static_cast<double>(dim) / 32;
    const auto pages = static_cast<double>(tokens) / kPageTokens;
    const Sieve sieve = SieveOf(p, static_cast<int64_t>(pages));
    const double scanned =
        sieve.num_groups == 0 ? pages : static_cast<double>(sieve.num_groups) * sieve.keep;
    const double ranges = sieve.num_groups == 0 ? 0.0 : pages * 2 * static_cast<double>(dim);
    const double again = p.rerank > 1 ? p.keep_blocks * p.rerank * kBlockTokens * key : 0.0;
    return scanned * kPageTokens * copy + ranges + again;
  }
  double bytes = 0.0;
  int64_t left = tokens;
  for (int32_t s = 0; s < p.num_stages; ++s) {
    const HipStage& stage = p.stages[s];
    const double chunks = static_cast<double>(left) / stage.chunk_tokens;
    bytes += chunks * key * (stage.every_key ? stage.chunk_tokens : 2 * Log2(stage.chunk_tokens));
    left = std::min<int64_t>(left, int64_t{stage.keep_chunks} * stage.chunk_tokens);
  }
  return bytes;
}

// Passes all calls on. In steps that decode one token it selects by every variant besides, and
// compares the log-sum-exp of attention over what is kept with that over everything.
class RecallStudy : public Kernels {
 public:
  RecallStudy(std::unique_ptr<Kernels> kernels, int64_t num_layers, std::vector<Variant> variants)
      : kernels_(std::move(kernels)), num_layers_(num_layers), variants_(std::move(variants)) {}

  std::string_view name() const override { return kernels_->name(); }
  DType activation_type() const override { return kernels_->activation_type(); }
  std::optional<MemoryBytes> memory() const override { return kernels_->memory(); }
  std::span<const DType> kv_types() const override { return kernels_->kv_types(); }
  void* Allocate(int64_t bytes) override { return kernels_->Allocate(bytes); }
  void Free(void* device) override { kernels_->Free(device); }
  void Upload(void* device, const void* host, int64_t bytes) override {
    kernels_->Upload(device, host, bytes);
  }
  void Download(void* host, const void* device, int64_t bytes) override {
    kernels_->Download(host, device, bytes);
  }
  Matrix LoadMatrix(std::span<const HostMatrix> parts) override {
    return kernels_->LoadMatrix(parts);
  }
  void BeginStep(const StepLayout& layout) override;
  void Embed(const EmbedArgs& args) override { kernels_->Embed(args); }
  void RmsNorm(const RmsNormArgs& args) override { kernels_->RmsNorm(args); }
  void MatMul(const MatMulArgs& args) override { kernels_->MatMul(args); }
  void StoreKv(const StoreKvArgs& args) override { kernels_->StoreKv(args); }
  void IndexKeys(const IndexKeysArgs& args) override;
  void Select(const SelectArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void GatedActivation(const GatedActivationArgs& args) override {
    kernels_->GatedActivation(args);
  }
  void Sample(const SampleArgs& args) override { kernels_->Sample(args); }
  void CopyPages(const CopyPagesArgs& args) override { kernels_->CopyPages(args); }
  void Sync() override { kernels_->Sync(); }

  // Of the last prompt.
  const std::vector<Variant>& variants() const { return variants_; }
  int64_t candidates() const { return candidates_; }
  int64_t steps() const { return steps_; }
  void Reset();

 private:
  struct Compared {
    QueryBlock block;
    SelectParams params;
  };

  void Allocate(const SelectArgs& args);
  void AppendPlans(const QueryBlock& served);
  void AppendPlan(const QueryBlock& block, const SelectParams* params);
  // [q_heads], of the layer's attention over the blocks of `plan`.
  std::vector<float> LogSums(AttentionArgs args, int32_t plan);

  std::unique_ptr<Kernels> kernels_;
  int64_t num_layers_;
  std::vector<Variant> variants_;
  std::vector<AttentionPlan> plans_;
  std::vector<Compared> compared_;
  Selection selection_;
  KeyIndex indexes_[5] = {};  // by bits
  float* log_sums_ = nullptr;
  void* out_ = nullptr;
  SelectArgs select_;
  int32_t first_plan_ = 0;  // of ours; 0: nothing is compared in this step
  int64_t candidates_ = 0;
  int64_t steps_ = 0;
};

void RecallStudy::Reset() {
  steps_ = 0;
  for (Variant& variant : variants_) variant.layers.clear();
}

// Two plans for each variant, for the leading layers and the others, and at last the exact one.
void RecallStudy::AppendPlans(const QueryBlock& served) {
  compared_.clear();
  for (size_t i = 0; i < variants_.size(); ++i) {
    const Variant& variant = variants_[i];
    for (const bool leading : {true, false}) {
      QueryBlock block = served;
      SelectParams params = variant.params;
      const bool scan = params.selector == Selector::kScan;
      params.distance = served.clip_distance;
      params.probes = leading ? ProbePositions::kChunk : ProbePositions::kRelative;
      block.slot = static_cast<int32_t>(i);
      block.select = 0;
      block.first = true;
      const bool kept = variant.aged && served.first_stage > 0 && steps_ > 0;
      block.first_stage = kept ? (scan ? 1 : params.num_stages) : 0;
      compared_.push_back({block, params});
    }
  }
  QueryBlock all = served;
  all.num_sinks = static_cast<int32_t>(served.window_begin);
  all.slot = -1;
  all.select = -1;
  compared_.push_back({all, {}});
  for (const Compared& c : compared_) {
    plans_.push_back({.num_blocks = 1,
                      .num_selects = c.block.select < 0 ? 0 : 1,
                      .blocks = &c.block,
                      .selects = &c.params});
  }
}

void RecallStudy::BeginStep(const StepLayout& layout) {
  first_plan_ = 0;
  plans_.assign(layout.plans, layout.plans + layout.num_plans);
  const QueryBlock& served = plans_.front().blocks[0];
  if (layout.num_tokens == 1 && served.slot >= 0 && served.positions == Positions::kClipped) {
    first_plan_ = layout.num_plans;
    candidates_ = served.window_begin - served.num_sinks;
    AppendPlans(served);
    ++steps_;
  }
  StepLayout wider = layout;
  wider.num_plans = static_cast<int32_t>(plans_.size());
  wider.plans = plans_.data();
  kernels_->BeginStep(wider);
}

void RecallStudy::IndexKeys(const IndexKeysArgs& args) {
  kernels_->IndexKeys(args);
  for (const int32_t bits : {1, 2, 4}) {
    KeyIndex& index = indexes_[bits];
    if (index.base == nullptr) {
      const int64_t pages = args.index.layer_stride_bytes / args.index.PageBytes();
      index = args.index;
      index.bits = bits;
      index.layer_stride_bytes = pages * index.PageBytes();
      index.base = kernels_->Allocate(num_layers_ * index.layer_stride_bytes);
      index.ranges = kernels_->Allocate(num_layers_ * index.range_stride_bytes);
    }
    IndexKeysArgs more = args;
    more.index = index;
    kernels_->IndexKeys(more);
  }
}

void RecallStudy::Allocate(const SelectArgs& args) {
  selection_ = args.selection;
  selection_.slots = static_cast<int32_t>(variants_.size());
  selection_.capacity = 1 << 13;
  const int64_t lists = selection_.List(selection_.layers, 0, 0, 0);
  selection_.blocks =
      static_cast<int32_t*>(kernels_->Allocate(lists * selection_.capacity * int64_t{4}));
  selection_.counts = static_cast<int32_t*>(kernels_->Allocate(lists * int64_t{4}));
  selection_.reuse = static_cast<int64_t*>(
      kernels_->Allocate(selection_.Reuse(selection_.slots, 0, 0) * int64_t{8}));
  log_sums_ = static_cast<float*>(kernels_->Allocate(args.q_heads * int64_t{4}));
  out_ = kernels_->Allocate(int64_t{args.q_heads} * args.cache.head_dim * 4);
}

void RecallStudy::Select(const SelectArgs& args) {
  kernels_->Select(args);
  select_ = args;
}

std::vector<float> RecallStudy::LogSums(AttentionArgs args, int32_t plan) {
  args.plan = plan;
  args.selection = selection_;
  args.lse = log_sums_;
  args.out = out_;
  kernels_->Attention(args);
  std::vector<float> sums(args.q_heads);
  kernels_->Sync();
  kernels_->Download(sums.data(), log_sums_, args.q_heads * int64_t{4});
  return sums;
}

void RecallStudy::Attention(const AttentionArgs& args) {
  kernels_->Attention(args);
  if (first_plan_ == 0) return;
  if (log_sums_ == nullptr) Allocate(select_);
  const auto exact_plan = first_plan_ + 2 * static_cast<int32_t>(variants_.size());
  const std::vector<float> exact = LogSums(args, exact_plan);
  for (size_t i = 0; i < variants_.size(); ++i) {
    Variant& variant = variants_[i];
    const int32_t plan =
        first_plan_ + 2 * static_cast<int32_t>(i) + (args.layer < kChunkLayers ? 0 : 1);
    SelectArgs select = select_;
    select.plan = plan;
    select.selection = selection_;
    select.index = indexes_[variant.bits];
    kernels_->Select(select);
    const std::vector<float> kept = LogSums(args, plan);
    double recall = 0.0;
    for (size_t h = 0; h < kept.size(); ++h) {
      recall +=
          std::min(1.0, std::exp(double{kept[h]} - exact[h])) / static_cast<double>(kept.size());
    }
    variant.layers.resize(std::max<size_t>(variant.layers.size(), args.layer + 1));
    variant.layers[args.layer] += recall;
  }
}

struct LastEvent : EventSink {
  void OnEvent(Event event) override {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) last = *finished;
  }
  FinishedEvent last;
};

void Print(const RecallStudy& study, int64_t prompt_tokens, int64_t head_dim) {
  fmt::print(
      "\n{} tokens, {} steps\n\n| selector | bytes read / token | mean recall | by layer |\n"
      "|---|---|---|---|\n",
      prompt_tokens, study.steps());
  for (const Variant& variant : study.variants()) {
    double mean = 0.0;
    std::string layers;
    for (const double sum : variant.layers) {
      const double recall = sum / static_cast<double>(study.steps());
      mean += recall / static_cast<double>(variant.layers.size());
      layers += fmt::format("{}{:.3f}", layers.empty() ? "" : " ", recall);
    }
    const double bytes = BytesRead(variant, study.candidates(), head_dim) / (variant.aged ? 8 : 1);
    fmt::print("| {} | {:.1f} | {:.4f} | {} |\n", variant.name,
               bytes / static_cast<double>(prompt_tokens), mean, layers);
  }
}

absl::Status Run(const std::string& device, const std::string& model,
                 const std::vector<std::string>& prompts) {
  std::string why;
  auto kernels =
      device == "cuda" ? MakeCudaKernels(DType::kBF16, &why) : MakeCpuKernels(/*num_threads=*/0);
  if (kernels == nullptr) return absl::FailedPreconditionError(why);
  ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(model));
  auto study = std::make_unique<RecallStudy>(std::move(kernels), checkpoint->config().num_layers,
                                             Variants());
  RecallStudy& recall = *study;
  ASSIGN_OR_RETURN(
      const auto engine,
      Engine::Create(std::move(checkpoint), std::move(study),
                     {.max_context = 200000, .max_batch_tokens = 2048, .max_running = 1}));
  for (const std::string& name : prompts) {
    std::ifstream file(name);
    if (!file) return absl::NotFoundError(name + " cannot be read");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    Request request;
    ASSIGN_OR_RETURN(request.prompt, engine->tokenizer().Encode(text, {}));
    request.sampling.temperature = 0.0f;
    request.max_output_tokens = kOutputTokens;
    request.ignore_eos = true;
    const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
    const auto sink = std::make_shared<LastEvent>();
    recall.Reset();
    RETURN_IF_ERROR(engine->Submit(std::move(request), sink).status());
    while (engine->Step()) continue;
    RETURN_IF_ERROR(sink->last.status);
    Print(recall, prompt_tokens, engine->config().head_dim);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace everlong

// Usage: everlong_recall_bench cpu|cuda MODEL PROMPT_FILE...
int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: everlong_recall_bench cpu|cuda MODEL PROMPT_FILE...\n";
    return 2;
  }
  const absl::Status status = everlong::Run(argv[1], argv[2], {argv + 3, argv + argc});
  if (!status.ok()) std::cerr << everlong::Message(status) << "\n";
  return status.ok() ? 0 : 1;
}
