// The step that BeginStep announced, as kernels and their launches see it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "kernels/cuda/memory.h"

namespace everlong::cuda {

// A decoded token that reads at most so many KV blocks of a head, and one that reads more, may be
// served by different kernels.
inline constexpr int64_t kFewBlocks = 448;

// One plan of the step. A launch may depend on the numbers and flags, which belong to the shape of
// a step (Step::shape), but on nothing else: the rest is read by kernels, so that a captured graph
// holds for every step of the same shape.
struct StepPlan {
  const QueryBlock* blocks = nullptr;  // device, [num_blocks]; those of decoded tokens come first
  const SelectParams* selects = nullptr;  // device, [num_selects]
  int32_t num_blocks = 0;
  int32_t num_selects = 0;
  int32_t num_decode_blocks = 0;
  // Whether, of decoded tokens, one may read at most kFewBlocks KV blocks, and one more than that.
  bool few = false;
  bool many = false;
  // Over blocks with a slot, of decoded tokens and of prompts.
  struct Selects {
    bool scan = false;  // some block scans
    bool hip = false;   // some block probes, in stages [first_stage, end_stage) at most
    int32_t first_stage = kMaxStages;
    int32_t end_stage = 0;
    int32_t max_keep_blocks = 0;
    int32_t max_rerank = 1;
    bool all_heads = false;  // some block scores over all heads
    // Of the blocks that probe, by stage: the shortest chunks, and the most tokens that one keeps.
    int32_t chunk_tokens[kMaxStages] = {};
    int32_t kept_tokens[kMaxStages] = {};

    bool operator==(const Selects&) const = default;
  };
  Selects decode;
  Selects prompt;
  // Host copies. Launches for prompts, which are never captured, may depend on them.
  std::span<const QueryBlock> host_blocks;
  std::span<const SelectParams> host_selects;
};

// Device pointers, valid until the next BeginStep; their addresses are the same in every step.
struct Step {
  int32_t num_sequences = 0;
  int32_t num_tokens = 0;
  int32_t num_decode = 0;  // leading tokens, a sequence and a query block each
  int32_t num_outputs = 0;
  int64_t max_length = 0;              // bounds every sequence with its new tokens; a power of two
  bool completes_page = false;         // some sequence completes a page
  const int32_t* tokens = nullptr;     // [num_tokens]
  const int64_t* positions = nullptr;  // [num_tokens]
  const int32_t* row_sequences = nullptr;  // [num_tokens]
  const int32_t* query_begin = nullptr;    // [num_sequences + 1]
  const int64_t* context_begin = nullptr;  // [num_sequences]
  const int32_t* pages = nullptr;
  const int64_t* page_begin = nullptr;   // [num_sequences + 1]
  const int32_t* output_rows = nullptr;  // [num_outputs]
  std::span<const StepPlan> plans;
};

// Lays steps out in one pinned buffer and its copy on the device.
class StepBuffer {
 public:
  // Copies `layout`; `stream` uploads it. The last upload must have ended.
  const Step& Assign(const StepLayout& layout, cudaStream_t stream);
  const Step& step() const { return step_; }
  // What launches depend on, as bytes: equal for steps that the same graph serves.
  const std::vector<int64_t>& shape() const { return shape_; }
  // Times that addresses have changed.
  int64_t generation() const { return generation_; }

 private:
  struct Region {
    int64_t offset = 0;
    int64_t capacity = 0;
  };
  enum RegionName {
    kTokens,
    kPositions,
    kRowSequences,
    kQueryBegin,
    kContextBegin,
    kPages,
    kPageBegin,
    kOutputRows,
    kBlocks,
    kSelects,
    kRegions
  };

  void Reserve(const int64_t (&bytes)[kRegions]);
  template <class T>
  T* Host(RegionName region);
  template <class T>
  const T* OnDevice(RegionName region) const;
  void AssignTokens(const StepLayout& layout);
  void AssignPlans(const StepLayout& layout);
  void DescribeShape();

  Region regions_[kRegions];
  int64_t bytes_ = 0;
  PinnedMemory host_;
  DeviceMemory device_;
  Step step_;
  std::vector<StepPlan> plans_;
  std::vector<int64_t> shape_;
  int64_t generation_ = 0;
};

}  // namespace everlong::cuda
