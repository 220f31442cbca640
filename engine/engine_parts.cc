#include "engine/engine_parts.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "engine/session.h"
#include "engine/status.h"
#include "fmt/format.h"

namespace everlong {
namespace {

// Selections of at least this budget are possible whatever the configuration: the largest preset's.
constexpr int32_t kLeastCapacity = 4096 / kBlockTokens;

int64_t MachineMemoryBytes() {
  return int64_t{sysconf(_SC_PHYS_PAGES)} * int64_t{sysconf(_SC_PAGE_SIZE)};
}

absl::Status CheckOption(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: {} is outside [{}, {}]", name, value, low, high));
}

// Checks the options and replaces defaults by what they stand for.
absl::Status ResolveOptions(const ModelConfig& config, EngineOptions& options) {
  if (options.max_context == 0) options.max_context = config.trained_length;
  RETURN_IF_ERROR(CheckOption("max_context", options.max_context, 2, int64_t{1} << 30));
  RETURN_IF_ERROR(
      CheckOption("max_batch_tokens", options.max_batch_tokens, kPageTokens + 1, 1 << 20));
  RETURN_IF_ERROR(
      CheckOption("max_running", options.max_running, 1, options.max_batch_tokens - kPageTokens));
  RETURN_IF_ERROR(CheckOption("max_waiting", options.max_waiting, 0, 1 << 30));
  if (options.index_bits != 1 && options.index_bits != 2 && options.index_bits != 4) {
    return absl::InvalidArgumentError(
        fmt::format("index_bits: {} is none of 1, 2, 4", options.index_bits));
  }
  return absl::OkStatus();
}

bool IsSparse(const AttentionPolicy& policy) {
  return MayBeSparse(policy, int64_t{1} << 30);
}

// How memory for contexts is laid out, before any of it is allocated.
ContextMemory LayOut(const ModelConfig& config, const EngineOptions& options,
                     const AttentionPolicy& policy) {
  ContextMemory memory;
  memory.layer_class = policy.layer_class;
  memory.cache = {
      .kv_heads = config.kv_heads, .head_dim = config.head_dim, .type = options.kv_type};
  if (!IsSparse(policy)) return memory;
  memory.index = {
      .kv_heads = config.kv_heads, .head_dim = config.head_dim, .bits = options.index_bits};
  // Every running sequence, and every prompt block of a step.
  const int32_t prompt_blocks =
      options.max_batch_tokens / kQueryBlockTokens + 2 * options.max_running;
  memory.selection = {.layers = config.num_layers,
                      .slots = options.max_running + prompt_blocks,
                      .kv_heads = config.kv_heads,
                      .capacity = std::max(SelectionCapacity(policy), kLeastCapacity)};
  return memory;
}

int64_t PageBytes(const ContextMemory& memory) {
  const int64_t index = memory.selection.slots == 0 ? 0 : memory.index.PageBytes();
  return (memory.cache.PageBytes() + index) * static_cast<int64_t>(memory.layer_class.size());
}

absl::StatusOr<int32_t> NumPages(const EngineOptions& options, int64_t page_bytes) {
  const int64_t needed = PagesFor(options.max_context) * page_bytes;
  int64_t budget = options.kv_device_bytes;
  if (budget == 0) budget = std::min(4 * needed, MachineMemoryBytes() / 4);
  if (budget < needed) {
    return absl::ResourceExhaustedError(fmt::format(
        "kv_device_bytes: {} bytes hold {} tokens, one sequence of max_context {} needs "
        "{} bytes",
        budget, budget / page_bytes * kPageTokens, options.max_context, needed));
  }
  return static_cast<int32_t>(std::min<int64_t>(budget / page_bytes, 1 << 30));
}

void Allocate(Kernels& kernels, int64_t num_pages, ContextMemory& memory) {
  const auto num_layers = static_cast<int64_t>(memory.layer_class.size());
  memory.cache.layer_stride_bytes = num_pages * memory.cache.PageBytes();
  memory.cache.base = kernels.Allocate(memory.cache.layer_stride_bytes * num_layers);
  Selection& selection = memory.selection;
  if (selection.slots == 0) return;
  memory.index.layer_stride_bytes = num_pages * memory.index.PageBytes();
  memory.index.base = kernels.Allocate(memory.index.layer_stride_bytes * num_layers);
  const int64_t lists = selection.List(num_layers, 0, 0, 0);
  const auto entry = static_cast<int64_t>(sizeof(int32_t));
  selection.counts = static_cast<int32_t*>(kernels.Allocate(lists * entry));
  selection.reuse = static_cast<int64_t*>(kernels.Allocate(selection.Reuse(selection.slots, 0, 0) *
                                                           static_cast<int64_t>(sizeof(int64_t))));
  selection.blocks = static_cast<int32_t*>(kernels.Allocate(lists * selection.capacity * entry));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const AttentionPolicy>> EngineParts::PolicyFor(
    const AttentionOverrides& overrides) const {
  if (overrides.IsEmpty()) return policy;
  ASSIGN_OR_RETURN(AttentionPolicy changed, Override(*policy, overrides));
  if (memory.selection.slots == 0 && IsSparse(changed)) {
    return absl::InvalidArgumentError(
        "attention.mode: this server serves dense attention only (attention: dense)");
  }
  if (IsSparse(changed) && SelectionCapacity(changed) > memory.selection.capacity) {
    return absl::InvalidArgumentError(
        fmt::format("attention.budget: {} blocks or chunks pass this server's limit of {}",
                    SelectionCapacity(changed), memory.selection.capacity));
  }
  return std::make_shared<const AttentionPolicy>(std::move(changed));
}

absl::StatusOr<EngineParts> LoadEngineParts(std::unique_ptr<Checkpoint> checkpoint,
                                            std::unique_ptr<Kernels> kernels,
                                            EngineOptions options) {
  const ModelConfig& config = checkpoint->config();
  RETURN_IF_ERROR(ResolveOptions(config, options));
  EngineParts parts;
  ASSIGN_OR_RETURN(AttentionPolicy policy,
                   MakePolicy(options.attention, config.num_layers, config.trained_length));
  ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::FromJson(checkpoint->tokenizer_json()));
  if (!checkpoint->chat_template().empty()) {
    ASSIGN_OR_RETURN(parts.chat_template, ChatTemplate::Parse(checkpoint->chat_template()));
  }
  parts.memory = LayOut(config, options, policy);
  ASSIGN_OR_RETURN(parts.num_pages, NumPages(options, PageBytes(parts.memory)));
  try {
    Allocate(*kernels, parts.num_pages, parts.memory);
    ASSIGN_OR_RETURN(parts.model, Model::Load(*checkpoint, kernels.get(), options.max_batch_tokens,
                                              options.max_running));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        fmt::format("memory does not suffice for the weights beside a KV cache of {} bytes; lower "
                    "kv_device_bytes or max_context",
                    parts.num_pages * PageBytes(parts.memory)));
  }
  parts.policy = std::make_shared<const AttentionPolicy>(std::move(policy));
  parts.kernels = std::move(kernels);
  parts.options = std::move(options);
  return parts;
}

}  // namespace everlong
