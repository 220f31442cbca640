#include "kernels/cuda/step_graphs.h"

#include <algorithm>

#include "kernels/cuda/error.h"

namespace everlong::cuda {
namespace {

// A graph of 300 launches takes about a megabyte.
constexpr size_t kMaxGraphs = 128;

class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    EVERLONG_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  }
  // A launch that threw leaves the stream capturing, perhaps in vain, which is no news.
  ~Capture() {
    if (!ended_ && cudaStreamEndCapture(stream_, &graph_) != cudaSuccess) cudaGetLastError();
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraphExec_t Instantiate() {
    ended_ = true;
    EVERLONG_CUDA(cudaStreamEndCapture(stream_, &graph_));
    cudaGraphExec_t graph = nullptr;
    EVERLONG_CUDA(cudaGraphInstantiate(&graph, graph_, 0));
    return graph;
  }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool ended_ = false;
};

}  // namespace

void StepGraphs::Run(const std::vector<int64_t>& shape, const std::vector<Call>& calls,
                     cudaStream_t stream, const std::function<void()>& launch) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.shape == shape && entry.calls == calls;
  });
  if (found == entries_.end()) {
    launch();
    entries_.push_front({.shape = shape, .calls = calls});
    if (entries_.size() > kMaxGraphs) entries_.pop_back();
    return;
  }
  entries_.splice(entries_.begin(), entries_, found);
  if (found->graph == nullptr) {
    Capture capture(stream);
    launch();
    found->graph.reset(capture.Instantiate());
  }
  EVERLONG_CUDA(cudaGraphLaunch(found->graph.get(), stream));
}

}  // namespace everlong::cuda
