#include "engine/engine_parts.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/session.h"
#include "engine/status.h"
#include "fmt/format.h"
#include "kernels/dtype.h"

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

absl::Status ResolveKvType(const Kernels& kernels, std::optional<DType>& type) {
  const std::span<const DType> stored = kernels.kv_types();
  if (!type) type = stored.front();
  if (std::find(stored.begin(), stored.end(), *type) != stored.end()) return absl::OkStatus();
  const auto name = [](DType of) {
    return std::find_if(std::begin(kPlainTypes), std::end(kPlainTypes),
                        [of](const auto& plain) { return plain.second == of; })
        ->first;
  };
  std::vector<std::string_view> names;
  for (const DType possible : stored) names.push_back(name(possible));
  return absl::InvalidArgumentError(fmt::format(
      "kv_type: {} stores {}, not {}", kernels.description(), fmt::join(names, ", "), name(*type)));
}

// Checks the options and replaces defaults by what they stand for.
absl::Status ResolveOptions(const ModelConfig& config, const Kernels& kernels,
                            EngineOptions& options) {
  if (options.max_context == 0) options.max_context = config.trained_length;
  if (options.max_batch_tokens == 0) options.max_batch_tokens = kernels.memory() ? 8192 : 512;
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
  return ResolveKvType(kernels, options.kv_type);
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
      .kv_heads = config.kv_heads, .head_dim = config.head_dim, .type = *options.kv_type};
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
  const int64_t index =
      memory.selection.slots == 0 ? 0 : memory.index.PageBytes() + memory.index.RangePageBytes();
  return (memory.cache.PageBytes() + index) * static_cast<int64_t>(memory.layer_class.size());
}

absl::Status DoesNotFit(const std::string& message) {
  return absl::ResourceExhaustedError(message);
}

// What kv_device_bytes stands for where it is 0. A tenth of a device's free memory is left for what
// operations use beside their arguments; more than max_running sequences never need room.
absl::StatusOr<int64_t> DefaultBudget(const EngineOptions& options, int64_t page_bytes,
                                      std::optional<MemoryBytes> device) {
  const int64_t needed = PagesFor(options.max_context) * page_bytes;
  if (!device) return std::min(4 * needed, MachineMemoryBytes() / 4);
  const int64_t room = device->free / 10 * 9;
  if (room >= needed) return std::min(room, options.max_running * needed);
  return DoesNotFit(fmt::format(
      "max_context: {} tokens need a KV cache of {} bytes; of the device's {} bytes {} "
      "are free, nine tenths of which hold a max_context of {}",
      options.max_context, needed, device->total, device->free, room / page_bytes * kPageTokens));
}

// Of the KV cache. `device`: how much memory it has left, if it has its own.
absl::StatusOr<int32_t> NumPages(const EngineOptions& options, int64_t page_bytes,
                                 std::optional<MemoryBytes> device) {
  const int64_t needed = PagesFor(options.max_context) * page_bytes;
  int64_t budget = options.kv_device_bytes;
  if (budget == 0) {
    ASSIGN_OR_RETURN(budget, DefaultBudget(options, page_bytes, device));
  } else if (device && budget > device->free) {
    return DoesNotFit(fmt::format("kv_device_bytes: {} of the device's {} bytes are free, not {}",
                                  device->free, device->total, budget));
  }
  if (budget < needed) {
    return DoesNotFit(
        fmt::format("kv_device_bytes: {} bytes hold {} tokens, one sequence of max_context {} "
                    "needs {} bytes",
                    budget, budget / page_bytes * kPageTokens, options.max_context, needed));
  }
  return static_cast<int32_t>(std::min<int64_t>(budget / page_bytes, 1 << 30));
}

// Of matrices, which are nearly all there are.
int64_t NumParameters(const ModelConfig& c) {
  const int64_t heads = int64_t{2} * (c.q_heads + c.kv_heads);
  const int64_t layer = c.hidden_size * (heads * c.head_dim + 3 * c.intermediate_size);
  return layer * c.num_layers + c.vocab_size * c.hidden_size * (c.tied_embeddings ? 1 : 2);
}

absl::Status WeightsDoNotFit(const ModelConfig& config, const EngineOptions& options,
                             std::optional<MemoryBytes> device) {
  return DoesNotFit(fmt::format(
      "memory does not suffice for {} parameters and activations for steps of "
      "max_batch_tokens {}{}",
      NumParameters(config), options.max_batch_tokens,
      device ? fmt::format("; {} of the device's {} bytes were free", device->free, device->total)
             : ""));
}

void AllocateSelection(Kernels& kernels, ContextMemory& memory) {
  Selection& selection = memory.selection;
  if (selection.slots == 0) return;
  const int64_t lists = selection.List(selection.layers, 0, 0, 0);
  const auto entry = static_cast<int64_t>(sizeof(int32_t));
  selection.counts = static_cast<int32_t*>(kernels.Allocate(lists * entry));
  selection.reuse = static_cast<int64_t*>(kernels.Allocate(selection.Reuse(selection.slots, 0, 0) *
                                                           static_cast<int64_t>(sizeof(int64_t))));
  selection.blocks = static_cast<int32_t*>(kernels.Allocate(lists * selection.capacity * entry));
}

void AllocatePages(Kernels& kernels, int64_t num_pages, ContextMemory& memory) {
  const auto num_layers = static_cast<int64_t>(memory.layer_class.size());
  memory.cache.layer_stride_bytes = num_pages * memory.cache.PageBytes();
  memory.cache.base = kernels.Allocate(memory.cache.layer_stride_bytes * num_layers);
  if (memory.selection.slots == 0) return;
  memory.index.layer_stride_bytes = num_pages * memory.index.PageBytes();
  memory.index.base = kernels.Allocate(memory.index.layer_stride_bytes * num_layers);
  memory.index.range_stride_bytes = num_pages * memory.index.RangePageBytes();
  memory.index.ranges = kernels.Allocate(memory.index.range_stride_bytes * num_layers);
}

// Weights, activations and selections first: the pages of the KV cache get what they leave.
absl::Status Load(const Checkpoint& checkpoint, EngineParts& parts) {
  Kernels& kernels = *parts.kernels;
  const EngineOptions& options = parts.options;
  const int64_t page_bytes = PageBytes(parts.memory);
  const std::optional<MemoryBytes> empty = kernels.memory();
  // What does not fit into an empty device need not be loaded to be refused.
  RETURN_IF_ERROR(NumPages(options, page_bytes, empty).status());
  try {
    ASSIGN_OR_RETURN(parts.model, Model::Load(checkpoint, &kernels, options.max_batch_tokens,
                                              options.max_running));
    AllocateSelection(kernels, parts.memory);
  } catch (const std::bad_alloc&) {
    return WeightsDoNotFit(checkpoint.config(), options, empty);
  }
  ASSIGN_OR_RETURN(parts.num_pages, NumPages(options, page_bytes, kernels.memory()));
  try {
    AllocatePages(kernels, parts.num_pages, parts.memory);
  } catch (const std::bad_alloc&) {
    return DoesNotFit(
        fmt::format("memory does not suffice for a KV cache of {} bytes beside the "
                    "weights; lower kv_device_bytes or max_context",
                    parts.num_pages * page_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

MemoryUse EngineParts::MemoryInUse() const {
  const auto num_layers = static_cast<int64_t>(memory.layer_class.size());
  const Selection& s = memory.selection;
  const int64_t list_bytes = (s.capacity + int64_t{1}) * static_cast<int64_t>(sizeof(int32_t));
  MemoryUse use = {
      .weights = model->weight_bytes(),
      .activations = model->activation_bytes(),
      .kv = memory.cache.layer_stride_bytes * num_layers,
      .index = (memory.index.layer_stride_bytes + memory.index.range_stride_bytes) * num_layers,
      .selection = s.List(s.layers, 0, 0, 0) * list_bytes +
                   s.Reuse(s.slots, 0, 0) * static_cast<int64_t>(sizeof(int64_t))};
  if (const auto device = kernels->memory()) {
    use.other = std::max<int64_t>(device->total - device->free - use.known(), 0);
  }
  return use;
}

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
  RETURN_IF_ERROR(ResolveOptions(config, *kernels, options));
  EngineParts parts;
  ASSIGN_OR_RETURN(AttentionPolicy policy,
                   MakePolicy(options.attention, config.num_layers, config.trained_length));
  ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::FromJson(checkpoint->tokenizer_json()));
  if (!checkpoint->chat_template().empty()) {
    ASSIGN_OR_RETURN(parts.chat_template, ChatTemplate::Parse(checkpoint->chat_template()));
  }
  parts.memory = LayOut(config, options, policy);
  parts.policy = std::make_shared<const AttentionPolicy>(std::move(policy));
  parts.kernels = std::move(kernels);
  parts.options = std::move(options);
  RETURN_IF_ERROR(Load(*checkpoint, parts));
  return parts;
}

}  // namespace everlong
