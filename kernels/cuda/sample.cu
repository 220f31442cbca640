// Sampling by the rules at SampleParams, in two kernels. The first cuts rows into chunks, so that
// one row occupies many multiprocessors, and finds each chunk's share of the sum of exponentials
// and its best token if all tokens stay. The second merges the chunks of a row; that is all, unless
// most likely tokens are to be reported or top_k, top_p or min_p may have dropped the best token.
#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels/check.h"
#include "kernels/cuda/ceil_div.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sample_row.cuh"

namespace everlong::cuda {
namespace {

constexpr int kChunkThreads = 256;
constexpr int kThreadLogits = 4;
constexpr int kChunk = kChunkThreads * kThreadLogits;

// Of some tokens' logits as they were given, the largest and the sum of exp(logit - peak).
struct SumOfExps {
  float peak;
  float sum;
};

// Rounds after every operation, so that the order of the two does not matter.
__device__ SumOfExps Merge(const SumOfExps& a, const SumOfExps& b) {
  const float peak = fmaxf(a.peak, b.peak);
  if (peak == -INFINITY) return {peak, 0.0f};
  return {peak,
          __fadd_rn(__fmul_rn(a.sum, expf(a.peak - peak)), __fmul_rn(b.sum, expf(b.peak - peak)))};
}

// What a chunk or a row comes to. Where nothing is sampled, `best` means nothing.
struct Summary {
  Scored best;
  SumOfExps given;
  float peak;  // the largest adjusted logit
};
__device__ Summary OfNothing() {
  return {{-INFINITY, INT32_MAX}, {-INFINITY, 0.0f}, -INFINITY};
}

struct MergeSummaries {
  __device__ Summary operator()(const Summary& a, const Summary& b) const {
    return {Better(a.best, b.best), Merge(a.given, b.given), fmaxf(a.peak, b.peak)};
  }
};

// Logits of a chunk, thread t's token i being begin + i * kChunkThreads + t. Past the end of the
// vocabulary they are -infinity.
using ThreadLogits = float[kThreadLogits];

__device__ SumOfExps SumChunk(const ThreadLogits& logits) {
  SumOfExps sum = {-INFINITY, 0.0f};
  for (const float logit : logits) sum.peak = fmaxf(sum.peak, logit);
  if (sum.peak > -INFINITY) {
    for (const float logit : logits) sum.sum += expf(logit - sum.peak);
  }
  return ReduceBlock<kChunkThreads>(sum, Merge);
}

__device__ void AdjustChunk(ThreadLogits& logits, int32_t begin, const TokenAdjust* adjusts,
                            const SampleParams& params) {
  __shared__ float shared[kChunk];
  for (int i = 0; i < kThreadLogits; ++i) shared[i * kChunkThreads + threadIdx.x] = logits[i];
  __syncthreads();
  for (int i = params.adjust_begin + threadIdx.x; i < params.adjust_end; i += kChunkThreads) {
    const TokenAdjust adjust = adjusts[i];
    const int32_t at = adjust.token - begin;
    if (at >= 0 && at < kChunk) shared[at] = Adjusted(shared[at], adjust, params);
  }
  __syncthreads();
  for (int i = 0; i < kThreadLogits; ++i) logits[i] = shared[i * kChunkThreads + threadIdx.x];
}

__device__ Scored BestOfChunk(const ThreadLogits& logits, int32_t begin, float peak,
                              const SampleParams& params) {
  const int32_t first = begin + threadIdx.x;
  Scored best = {-INFINITY, first};
  if (params.temperature == 0.0f || peak == -INFINITY) {
    for (int i = 0; i < kThreadLogits; ++i) {
      best = Better(best, {logits[i], first + i * kChunkThreads});
    }
    return ReduceBlock<kChunkThreads>(best, Better);
  }
  const Draw draw(params, peak);
  float rough[kThreadLogits];
  float best_rough = -INFINITY;
  for (int i = 0; i < kThreadLogits; ++i) {
    rough[i] = draw.RoughScore(logits[i], first + i * kChunkThreads);
    best_rough = fmaxf(best_rough, rough[i]);
  }
  const float least = ReduceBlock<kChunkThreads>(best_rough, Max()) - Draw::kMargin;
  for (int i = 0; i < kThreadLogits; ++i) {
    if (rough[i] >= least) best = Better(best, draw.Score(logits[i], first + i * kChunkThreads));
  }
  return ReduceBlock<kChunkThreads>(best, Better);
}

// A block for each chunk of each row.
__global__ void __launch_bounds__(kChunkThreads)
    SummarizeChunks(const float* logits, const SampleParams* all_params, const TokenAdjust* adjusts,
                    int32_t vocab, int32_t num_chunks, Summary* summaries) {
  const int32_t row = blockIdx.x / num_chunks;
  const int32_t begin = blockIdx.x % num_chunks * kChunk;
  const float* row_logits = logits + int64_t{row} * vocab;
  LetNextStart();
  WaitForPrevious();
  ThreadLogits x;
#pragma unroll
  for (int i = 0; i < kThreadLogits; ++i) {
    const int32_t token = begin + i * kChunkThreads + threadIdx.x;
    x[i] = token < vocab ? Ordered(row_logits[token]) : -INFINITY;
  }
  const SampleParams params = all_params[row];
  Summary summary = OfNothing();
  summary.given = SumChunk(x);
  if (params.score_token < 0) {
    if (params.adjust_begin < params.adjust_end) AdjustChunk(x, begin, adjusts, params);
    float peak = -INFINITY;
    for (const float logit : x) peak = fmaxf(peak, logit);
    summary.peak = ReduceBlock<kChunkThreads>(peak, Max());
    summary.best = BestOfChunk(x, begin, summary.peak, params);
  }
  if (threadIdx.x == 0) summaries[blockIdx.x] = summary;
}

// Device memory, but for the results, which kernels write to pinned memory.
struct SampleArrays {
  const SampleParams* params = nullptr;  // [rows]
  const TokenAdjust* adjusts = nullptr;
  float* given = nullptr;         // logits before their adjustment, by adjustment
  int32_t* tokens = nullptr;      // [rows]
  float* logprobs = nullptr;      // [rows]
  int32_t* top_tokens = nullptr;  // [rows][max_top]
  float* top_logprobs = nullptr;  // [rows][max_top]
};

// The row is adjusted in place meanwhile.
__device__ int32_t BestOfKeptAdjusted(const Row& row, const SampleParams& params,
                                      const SampleArrays& arrays, float peak, int32_t best) {
  for (int i = params.adjust_begin + threadIdx.x; i < params.adjust_end; i += kRowThreads) {
    const TokenAdjust adjust = arrays.adjusts[i];
    float& logit = row.logits[adjust.token];
    arrays.given[i] = logit;
    logit = Adjusted(Ordered(logit), adjust, params);
  }
  __syncthreads();
  const int32_t token = BestOfKept(row, params, peak, best);
  __syncthreads();
  for (int i = params.adjust_begin + threadIdx.x; i < params.adjust_end; i += kRowThreads) {
    row.logits[arrays.adjusts[i].token] = arrays.given[i];
  }
  __syncthreads();
  return token;
}

__device__ bool MayDropBest(const SampleParams& params) {
  return params.temperature > 0.0f &&
         (params.top_k > 0 || params.top_p < 1.0f || params.min_p > 0.0f);
}

// A block for each row.
__global__ void __launch_bounds__(kRowThreads)
    FinishRows(float* logits, SampleArrays arrays, const Summary* summaries, int32_t vocab,
               int32_t num_chunks, int32_t max_top) {
  const int32_t index = blockIdx.x;
  const Row row = {logits + int64_t{index} * vocab, vocab};
  const SampleParams params = arrays.params[index];
  WaitForPrevious();
  Summary summary = OfNothing();
  for (int32_t chunk = threadIdx.x; chunk < num_chunks; chunk += kRowThreads) {
    summary = MergeSummaries()(summary, summaries[int64_t{index} * num_chunks + chunk]);
  }
  summary = ReduceBlock<kRowThreads>(summary, MergeSummaries());
  const double log_total = summary.given.peak + log(static_cast<double>(summary.given.sum));
  if (params.num_top > 0) {
    const int64_t top = int64_t{index} * max_top;
    ReportTop(row, params.num_top, log_total, arrays.top_tokens + top, arrays.top_logprobs + top);
  }
  int32_t token = params.score_token >= 0 ? params.score_token : summary.best.token;
  if (params.score_token < 0 && MayDropBest(params) && summary.peak > -INFINITY) {
    token = BestOfKeptAdjusted(row, params, arrays, summary.peak, token);
  }
  if (threadIdx.x > 0) return;
  arrays.tokens[index] = token;
  arrays.logprobs[index] = LogProbability(Ordered(row.logits[token]), log_total);
}

}  // namespace

// The arrays of SampleArrays, with room for so many rows, adjustments and reported tokens.
class Sampler {
 public:
  void Stage(const SampleArgs& args, cudaStream_t stream);
  void Launch(const SampleArgs& args, Context& context) const;
  void Finish(const SampleArgs& args) const;
  int64_t generation() const { return generation_; }

 private:
  void Reserve(int64_t rows, int64_t adjusts, int64_t tops);

  int64_t rows_ = 256;
  int64_t adjusts_ = 1 << 16;
  int64_t tops_ = 1 << 13;
  PinnedMemory staged_;  // parameters, then adjustments
  DeviceMemory device_;  // likewise, then `given`
  PinnedMemory results_;
  SampleArrays arrays_;
  int64_t generation_ = 0;
};

void Sampler::Reserve(int64_t rows, int64_t adjusts, int64_t tops) {
  if (device_ != nullptr && rows <= rows_ && adjusts <= adjusts_ && tops <= tops_) return;
  device_ = nullptr;  // where what follows throws, nothing fits
  const auto grow = [](int64_t& capacity, int64_t count) {
    if (count > capacity) capacity = count * 3 / 2;
  };
  grow(rows_, rows);
  grow(adjusts_, adjusts);
  grow(tops_, tops);
  const auto params_bytes = rows_ * static_cast<int64_t>(sizeof(SampleParams));
  const auto adjust_bytes = adjusts_ * static_cast<int64_t>(sizeof(TokenAdjust));
  staged_ = AllocatePinned(params_bytes + adjust_bytes);
  results_ = AllocatePinned(8 * (rows_ + tops_));
  device_ = AllocateDevice(params_bytes + adjust_bytes + 4 * adjusts_);
  std::byte* const device = device_.get();
  auto* const tokens = reinterpret_cast<int32_t*>(results_.get());
  auto* const logprobs = reinterpret_cast<float*>(tokens + rows_ + tops_);
  arrays_ = {.params = reinterpret_cast<const SampleParams*>(device),
             .adjusts = reinterpret_cast<const TokenAdjust*>(device + params_bytes),
             .given = reinterpret_cast<float*>(device + params_bytes + adjust_bytes),
             .tokens = tokens,
             .logprobs = logprobs,
             .top_tokens = tokens + rows_,
             .top_logprobs = logprobs + rows_};
  ++generation_;
}

// Adjustments are laid row after row, wherever they were.
void Sampler::Stage(const SampleArgs& args, cudaStream_t stream) {
  EVERLONG_CHECK(args.vocab > 0 && args.max_top <= kMaxTop);
  int64_t num_adjusts = 0;
  for (int32_t row = 0; row < args.rows; ++row) {
    num_adjusts += args.params[row].adjust_end - args.params[row].adjust_begin;
  }
  Reserve(args.rows, num_adjusts, int64_t{args.rows} * args.max_top);
  auto* const params = reinterpret_cast<SampleParams*>(staged_.get());
  auto* const adjusts = reinterpret_cast<TokenAdjust*>(params + rows_);
  int32_t end = 0;
  for (int32_t row = 0; row < args.rows; ++row) {
    const SampleParams& given = args.params[row];
    EVERLONG_CHECK(given.score_token < args.vocab);
    EVERLONG_CHECK(given.num_top <= std::min(args.max_top, args.vocab));
    params[row] = given;
    params[row].adjust_begin = end;
    for (int32_t i = given.adjust_begin; i < given.adjust_end; ++i) {
      EVERLONG_CHECK(args.adjusts[i].token >= 0 && args.adjusts[i].token < args.vocab);
      adjusts[end++] = args.adjusts[i];
    }
    params[row].adjust_end = end;
  }
  const size_t bytes = end > 0 ? rows_ * sizeof(SampleParams) + end * sizeof(TokenAdjust)
                               : args.rows * sizeof(SampleParams);
  EVERLONG_CUDA(
      cudaMemcpyAsync(device_.get(), staged_.get(), bytes, cudaMemcpyHostToDevice, stream));
}

void Sampler::Launch(const SampleArgs& args, Context& context) const {
  if (args.rows == 0) return;
  const int32_t num_chunks = CeilDiv(args.vocab, kChunk);
  const int32_t blocks = args.rows * num_chunks;
  auto* const summaries = context.scratch.Get<Summary>(Scratch::kSample, blocks);
  LaunchDependent(context, SummarizeChunks, dim3(static_cast<uint32_t>(blocks)), kChunkThreads, 0,
                  args.logits, arrays_.params, arrays_.adjusts, args.vocab, num_chunks, summaries);
  LaunchDependent(context, FinishRows, dim3(static_cast<uint32_t>(args.rows)), kRowThreads, 0,
                  args.logits, arrays_, summaries, args.vocab, num_chunks, args.max_top);
}

void Sampler::Finish(const SampleArgs& args) const {
  std::copy_n(arrays_.tokens, args.rows, args.tokens);
  std::copy_n(arrays_.logprobs, args.rows, args.logprobs);
  for (int32_t row = 0; row < args.rows; ++row) {
    const int64_t top = int64_t{row} * args.max_top;
    std::copy_n(arrays_.top_tokens + top, args.params[row].num_top, args.top_tokens + top);
    std::copy_n(arrays_.top_logprobs + top, args.params[row].num_top, args.top_logprobs + top);
  }
}

std::shared_ptr<Sampler> MakeSampler() {
  return std::make_shared<Sampler>();
}

int64_t SamplerGeneration(const Sampler& sampler) {
  return sampler.generation();
}

void StageSample(Sampler& sampler, const SampleArgs& args, Context& context) {
  sampler.Stage(args, context.stream);
}

void LaunchSample(Sampler& sampler, const SampleArgs& args, Context& context) {
  sampler.Launch(args, context);
}

void FinishSample(Sampler& sampler, const SampleArgs& args) {
  sampler.Finish(args);
}

}  // namespace everlong::cuda
