// CUDA graphs of decode steps. Such a step is a list of calls; where the same list comes again for
// a step of the same shape, one graph launch takes the place of its launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <variant>
#include <vector>

#include "kernels/args.h"

namespace everlong::cuda {

// Where results go on the host is no part of what is launched.
struct SampleCall {
  SampleArgs args;

  bool operator==(const SampleCall& other) const {
    return args.logits == other.args.logits && args.rows == other.args.rows &&
           args.vocab == other.args.vocab && args.max_top == other.args.max_top;
  }
};

using Call = std::variant<EmbedArgs, RmsNormArgs, MatMulArgs, StoreKvArgs, IndexKeysArgs,
                          SelectArgs, AttentionArgs, GatedActivationArgs, SampleCall>;

class StepGraphs {
 public:
  // Runs `launch`, which launches `calls` on `stream`: itself the first time for a list and shape,
  // so that whatever is made lazily exists; under capture the second time; as a graph from then on.
  // `shape`: of the step, and whatever else addresses depend on.
  void Run(const std::vector<int64_t>& shape, const std::vector<Call>& calls, cudaStream_t stream,
           const std::function<void()>& launch);

 private:
  struct FreeGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  struct Entry {
    std::vector<int64_t> shape;
    std::vector<Call> calls;
    std::unique_ptr<CUgraphExec_st, FreeGraph> graph;  // null: seen once
  };

  std::list<Entry> entries_;  // the latest used first
};

}  // namespace everlong::cuda
