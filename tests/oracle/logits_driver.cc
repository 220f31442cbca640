// Logits of a checkpoint at every position of a prompt, for comparison with other implementations.
//
//   everlong_logits DIRECTORY reference|cpu|cuda f32|f16|bf16|fp8 CHUNK < token ids
//
// reads the prompt in steps of CHUNK tokens, 1 decoding them one by one, with keys and values of
// that type, and writes f32 [tokens][vocab_size] to standard output.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/attention_policy.h"
#include "engine/checkpoint.h"
#include "engine/model.h"
#include "engine/status.h"
#include "kernels/kernels.h"

namespace everlong {
namespace {

constexpr int32_t kLogitRows = 64;

struct Run {
  std::string directory;
  std::string_view backend;
  DType kv_type;
  int32_t chunk;
  std::vector<int32_t> tokens;
};

// Keys and values of one sequence, whose pages lie in descending order.
struct Context {
  ContextMemory memory;
  std::vector<int32_t> pages;
};

Context MakeContext(const ModelConfig& config, DType kv_type, int64_t num_tokens,
                    Kernels& kernels) {
  Context context;
  for (int64_t page = (num_tokens - 1) / kPageTokens; page >= 0; --page) {
    context.pages.push_back(static_cast<int32_t>(page));
  }
  KvCache& cache = context.memory.cache;
  cache = {.kv_heads = config.kv_heads, .head_dim = config.head_dim, .type = kv_type};
  cache.layer_stride_bytes = static_cast<int64_t>(context.pages.size()) * cache.PageBytes();
  cache.base = kernels.Allocate(cache.layer_stride_bytes * config.num_layers);
  context.memory.layer_class.assign(config.num_layers, 0);
  return context;
}

// One step: tokens [begin, end) of the prompt, all of whose logits are written.
void RunStep(const Run& run, int32_t begin, int32_t end, const AttentionPolicy& policy,
             const Context& context, Model& model, Kernels& kernels) {
  const int32_t num_tokens = end - begin;
  PlanBuilder builder;
  builder.Clear(/*first_prompt_slot=*/0);
  builder.Add({.policy = &policy, .decode_begin = static_cast<int64_t>(run.tokens.size())},
              /*layer_class=*/0, /*sequence=*/0, /*first_row=*/0, begin, end);
  const AttentionPlan plan = builder.plan();
  std::vector<int32_t> rows;
  for (int32_t row = 0; row < num_tokens; ++row) rows.push_back(row);
  const int32_t query_begin[] = {0, num_tokens};
  const int64_t context_begin[] = {begin};
  const int64_t page_begin[] = {0, static_cast<int64_t>(context.pages.size())};
  model.Forward({.num_sequences = 1,
                 .num_tokens = num_tokens,
                 .num_decode = run.chunk == 1 ? 1 : 0,
                 .tokens = run.tokens.data() + begin,
                 .query_begin = query_begin,
                 .context_begin = context_begin,
                 .pages = context.pages.data(),
                 .page_begin = page_begin,
                 .num_outputs = num_tokens,
                 .output_rows = rows.data(),
                 .num_plans = 1,
                 .plans = &plan},
                context.memory);
  std::vector<float> logits;
  for (int32_t first = 0; first < num_tokens; first += kLogitRows) {
    const int32_t num_rows = std::min(kLogitRows, num_tokens - first);
    logits.resize(num_rows * model.config().vocab_size);
    const float* device = model.Logits(first, num_rows);
    kernels.Sync();
    kernels.Download(logits.data(), device, static_cast<int64_t>(logits.size() * sizeof(float)));
    std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
  }
}

absl::Status WriteLogits(const Run& run) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(run.directory));
  const ModelConfig& config = checkpoint->config();
  const auto num_tokens = static_cast<int32_t>(run.tokens.size());
  for (int32_t token : run.tokens) {
    if (token >= 0 && token < config.vocab_size) continue;
    return absl::InvalidArgumentError("token " + std::to_string(token) +
                                      " is not in the vocabulary");
  }
  std::string why;
  const std::unique_ptr<Kernels> kernels = run.backend == "reference" ? MakeReferenceKernels()
                                           : run.backend == "cuda"
                                               ? MakeCudaKernels(DType::kBF16, &why)
                                               : MakeCpuKernels(/*num_threads=*/0);
  if (kernels == nullptr) return absl::FailedPreconditionError(why);
  ASSIGN_OR_RETURN(const auto model,
                   Model::Load(*checkpoint, kernels.get(), run.chunk, kLogitRows));
  ASSIGN_OR_RETURN(const AttentionPolicy policy,
                   MakePolicy({.all = {.mode = AttentionMode::kDense}}, config.num_layers,
                              config.trained_length));
  const Context context = MakeContext(config, run.kv_type, num_tokens, *kernels);
  for (int32_t begin = 0; begin < num_tokens; begin += run.chunk) {
    RunStep(run, begin, std::min(begin + run.chunk, num_tokens), policy, context, *model, *kernels);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const bool usable =
      arguments.size() == 4 &&
      (arguments[1] == "reference" || arguments[1] == "cpu" || arguments[1] == "cuda") &&
      std::atoi(argv[4]) > 0;
  if (!usable) {
    std::cerr << "usage: everlong_logits DIRECTORY reference|cpu|cuda f32|f16|bf16|fp8 CHUNK < "
                 "token ids\n";
    return 2;
  }
  const std::string_view type = arguments[2];
  const Run run = {
      .directory = std::string(arguments[0]),
      .backend = arguments[1],
      .kv_type = type == "f32"   ? DType::kF32
                 : type == "f16" ? DType::kF16
                 : type == "fp8" ? DType::kF8
                                 : DType::kBF16,
      .chunk = std::atoi(argv[4]),
      .tokens = {std::istream_iterator<int32_t>(std::cin), std::istream_iterator<int32_t>()}};
  const absl::Status status = WriteLogits(run);
  if (!status.ok()) std::cerr << Message(status) << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace everlong

int main(int argc, char** argv) {
  return everlong::Main(argc, argv);
}
