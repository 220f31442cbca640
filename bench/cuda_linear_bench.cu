// Products of weight matrices on the GPU: decoded rows against the bandwidth of reading memory,
// prompt rows in operations per second. Every product reads another copy of its matrix, more copies
// than the cache holds. The last column is how far decoded rows are from the same prompt rows, as a
// share of the largest result; and a row must have the bits that it has when it is decoded alone.
// Last comes a decode step of Llama 3.1 8B without its attention.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/cuda/context.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/operations.h"

namespace everlong::cuda {
namespace {

constexpr int64_t kCopyBytes = int64_t{256} << 20;  // of all copies of a matrix, at least
constexpr int64_t kPromptRows = 2048;
constexpr int kRuns = 7;

struct Shape {
  int64_t rows;
  int64_t cols;
};

__device__ uint32_t Hash(uint64_t i) {
  i = (i + 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return static_cast<uint32_t>((i ^ i >> 29) * 0x94D049BB133111EBu >> 32);
}

// Values of +-[1, 2), in bf16 or E4M3. Those of x are scaled by up to 128: their sums are rounded.
__global__ void FillWithBF16(uint16_t* out, int64_t count, int max_exponent) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const uint32_t hash = Hash(i);
    const uint32_t exponent = 127 + (hash >> 16) % (max_exponent + 1);
    out[i] = static_cast<uint16_t>(exponent << 7 | (hash & 0x807F));
  }
}
__global__ void FillWithF8(uint8_t* out, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    out[i] = static_cast<uint8_t>(0x38 | (Hash(i) & 0x87));
  }
}
__global__ void FillWithOnes(float* out, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    out[i] = 1.0f;
  }
}

__global__ void ReadAll(const uint4* from, int64_t count, uint32_t* out) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
#pragma unroll 8
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const uint4 v = __ldcs(from + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 1) *out = sum;  // so that the sum is needed
}

class Bench {
 public:
  explicit Bench(DType type) : type_(type), linear_(MakeLinear(type)) {
    cudaDeviceProp properties;
    EVERLONG_CUDA(cudaGetDeviceProperties(&properties, 0));
    EVERLONG_CUDA(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
    context_.num_sms = properties.multiProcessorCount;
    context_.architecture = 10 * properties.major + properties.minor;
    bandwidth_ = MeasureBandwidth();
    std::printf("%s, %d multiprocessors, weights of %lld bytes, memory read at %.0f GB/s\n",
                properties.name, context_.num_sms, static_cast<long long>(ByteSize(type)),
                bandwidth_ / 1e9);
    std::printf("%7s %6s %5s %9s %8s %6s %8s %10s\n", "outputs", "inputs", "rows", "us", "GB/s",
                "share", "TFLOP/s", "difference");
  }

  void Run(const Shape& shape) {
    const int64_t bytes = shape.rows * shape.cols * ByteSize(type_);
    const int64_t copies = std::max<int64_t>(2, (kCopyBytes + bytes - 1) / bytes);
    std::vector<DeviceMemory> owners;
    std::vector<Matrix> matrices;
    for (int64_t i = 0; i < copies; ++i) matrices.push_back(MakeMatrix(shape, owners));
    x_ = AllocateDevice(kPromptRows * shape.cols * 2);
    FillWithBF16<<<1024, 256, 0, context_.stream>>>(reinterpret_cast<uint16_t*>(x_.get()),
                                                    kPromptRows * shape.cols, 7);
    out_ = AllocateDevice(kPromptRows * shape.rows * 4);
    for (const int32_t rows : {1, 8, 16, 32, 64}) {
      const double difference = Difference(matrices.front(), rows);
      Report(shape, rows, TimeOf(matrices, rows, rows));
      std::printf(" %10.1e\n", difference);
    }
    Report(shape, kPromptRows, TimeOf(matrices, kPromptRows, 0));
    std::printf("\n");
  }

  // Throws where a norm and an activation in the same kernel as a product, of a row that is alone,
  // change it or what they make.
  void CheckFused() {
    constexpr int64_t kWidth = 4096;
    constexpr int32_t kHidden = 6144;
    std::vector<DeviceMemory> owners;
    const Matrix w = MakeMatrix({2 * kHidden, kWidth}, owners);
    const DeviceMemory x = AllocateDevice(kWidth * 4);
    const DeviceMemory weight = AllocateDevice(kWidth * 4);
    for (const DeviceMemory* floats : {&x, &weight}) {
      std::vector<float> values(kWidth);
      for (int64_t i = 0; i < kWidth; ++i) {
        values[i] =
            static_cast<float>((i * 2654435761u + (floats == &x ? 7 : 0)) % 1000) / 999 - 0.5f;
      }
      CopyNow(floats->get(), values.data(), kWidth * 4);
    }
    const auto run = [&](bool fused) {
      const int64_t sizes[] = {kWidth * 2, 4 * kHidden, 2 * kHidden};
      const DeviceMemory all = AllocateDevice(sizes[0] + sizes[1] + sizes[2]);
      ZeroNow(all.get(), sizes[0] + sizes[1] + sizes[2]);
      std::byte* const normed = all.get();
      std::byte* const gate_up = normed + sizes[0];
      const RmsNormArgs norm = {.x = reinterpret_cast<const float*>(x.get()),
                                .weight = reinterpret_cast<const float*>(weight.get()),
                                .out = normed,
                                .rows = 1,
                                .width = kWidth,
                                .eps = 1e-5f};
      const MatMulArgs product = ArgsOf(w, normed, gate_up, 1, MatMulOut::kActivations);
      const GatedActivationArgs gate = {
          .gate_up = gate_up, .out = gate_up + sizes[1], .rows = 1, .width = kHidden};
      if (fused) {
        MatMul(*linear_, {.product = &product, .norm = &norm, .gate = &gate}, {}, context_);
      } else {
        RmsNorm(norm, {}, context_);
        MatMul(*linear_, product, context_);
        GatedActivation(gate, context_);
      }
      std::vector<uint16_t> results((sizes[0] + sizes[1] + sizes[2]) / 2);
      EVERLONG_CUDA(cudaStreamSynchronize(context_.stream));
      EVERLONG_CUDA(
          cudaMemcpy(results.data(), all.get(), 2 * results.size(), cudaMemcpyDeviceToHost));
      return results;
    };
    const std::vector<uint16_t> alone = run(false);
    const bool zero = std::all_of(alone.begin(), alone.end(), [](uint16_t v) { return v == 0; });
    if (zero || run(true) != alone)
      throw std::runtime_error("fused kernels compute something else");
    std::printf("fused and alone: the same bits\n");
  }

  // Every layer has the weights of the first, which are more than the cache holds.
  void RunStep(int32_t rows) {
    constexpr int64_t kWidth = 4096;
    constexpr int64_t kHidden = 14336;
    constexpr int kLayers = 32;
    std::vector<DeviceMemory> owners;
    const Matrix qkv = MakeMatrix({6144, kWidth}, owners);
    const Matrix o = MakeMatrix({kWidth, kWidth}, owners);
    const Matrix gate_up = MakeMatrix({2 * kHidden, kWidth}, owners);
    const Matrix down = MakeMatrix({kWidth, kHidden}, owners);
    const Matrix head = MakeMatrix({128256, kWidth}, owners);
    owners.push_back(AllocateDevice(kWidth * 4));
    auto* norm = reinterpret_cast<float*>(owners.back().get());
    ZeroNow(norm, kWidth * 4);
    owners.push_back(AllocateDevice(rows * kWidth * 4));
    auto* residual = reinterpret_cast<float*>(owners.back().get());
    ZeroNow(residual, rows * kWidth * 4);
    x_ = AllocateDevice(rows * kHidden * 2);
    out_ = AllocateDevice(rows * head.rows * 4);
    DeviceMemory gated = AllocateDevice(rows * kHidden * 2);
    const RmsNormArgs normalize = {.x = residual,
                                   .weight = norm,
                                   .out = x_.get(),
                                   .rows = rows,
                                   .width = kWidth,
                                   .eps = 1e-5f};
    const GatedActivationArgs activate = {
        .gate_up = out_.get(), .out = gated.get(), .rows = rows, .width = kHidden};
    const MatMulArgs products[] = {
        ArgsOf(qkv, x_.get(), out_.get(), rows, MatMulOut::kActivations),
        ArgsOf(o, x_.get(), residual, rows, MatMulOut::kAddF32),
        ArgsOf(gate_up, x_.get(), out_.get(), rows, MatMulOut::kActivations),
        ArgsOf(down, gated.get(), residual, rows, MatMulOut::kAddF32),
        ArgsOf(head, x_.get(), out_.get(), rows, MatMulOut::kF32)};
    const ProductCalls layer[] = {{.product = &products[0], .norm = &normalize},
                                  {.product = &products[1]},
                                  {.product = &products[2], .norm = &normalize, .gate = &activate},
                                  {.product = &products[3]}};
    const ProductCalls last = {.product = &products[4], .norm = &normalize};
    const double seconds = SecondsOf(1, [&](int64_t) {
      for (int i = 0; i < 4 * kLayers; ++i) {
        MatMul(*linear_, layer[i % 4], {}, context_);
      }
      MatMul(*linear_, last, {}, context_);
    });
    const int64_t weights =
        kLayers * (qkv.rows + o.rows + gate_up.rows + 3 * o.rows + o.rows / 2) * kWidth +
        head.rows * kWidth;
    const double rate = static_cast<double>(weights * ByteSize(type_)) / seconds;
    std::printf("step of %d rows: %.3f ms, %.0f GB/s, %.1f%%\n", rows, seconds * 1e3, rate / 1e9,
                100 * rate / bandwidth_);
  }

 private:
  Matrix MakeMatrix(const Shape& shape, std::vector<DeviceMemory>& owners) const {
    Matrix w = {.rows = shape.rows, .cols = shape.cols, .type = type_};
    owners.push_back(AllocateDevice(w.rows * w.cols * ByteSize(type_) + 256 + w.rows * 4));
    w.data = owners.back().get();
    Fill(owners.back().get(), w);
    return w;
  }

  void Fill(std::byte* data, const Matrix& w) const {
    const int64_t count = w.rows * w.cols;
    if (type_ == DType::kBF16) {
      FillWithBF16<<<1024, 256, 0, context_.stream>>>(reinterpret_cast<uint16_t*>(data), count, 0);
    } else {
      FillWithF8<<<1024, 256, 0, context_.stream>>>(reinterpret_cast<uint8_t*>(data), count);
      FillWithOnes<<<1024, 256, 0, context_.stream>>>(
          reinterpret_cast<float*>(data + (count + 255) / 256 * 256), w.rows);
    }
    EVERLONG_CUDA_LAUNCHED("Fill");
  }

  static MatMulArgs ArgsOf(const Matrix& w, const std::byte* x, void* out, int32_t rows,
                           MatMulOut mode) {
    return {.w = w,
            .x = x,
            .out = out,
            .x_stride = w.cols,
            .out_stride = w.rows,
            .rows = rows,
            .decode_rows = rows,
            .mode = mode};
  }

  // Rows of x from `first` on.
  void Multiply(const Matrix& w, int32_t first, int32_t rows, int32_t decode_rows, MatMulOut mode) {
    MatMulArgs args = ArgsOf(w, x_.get() + first * w.cols * 2, out_.get(), rows, mode);
    args.decode_rows = decode_rows;
    MatMul(*linear_, args, context_);
  }

  // The median of seconds per call of `launch`, launched `times` times in one graph, as a decode
  // step's kernels are.
  double SecondsOf(int64_t times, const std::function<void(int64_t)>& launch) {
    launch(0);  // makes what is made lazily
    EVERLONG_CUDA(cudaStreamSynchronize(context_.stream));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    EVERLONG_CUDA(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeRelaxed));
    for (int64_t i = 0; i < times; ++i) launch(i);
    EVERLONG_CUDA(cudaStreamEndCapture(context_.stream, &graph));
    EVERLONG_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    EVERLONG_CUDA(cudaEventCreate(&begin));
    EVERLONG_CUDA(cudaEventCreate(&end));
    std::vector<float> milliseconds(kRuns);
    for (float& run : milliseconds) {
      EVERLONG_CUDA(cudaEventRecord(begin, context_.stream));
      EVERLONG_CUDA(cudaGraphLaunch(executable, context_.stream));
      EVERLONG_CUDA(cudaEventRecord(end, context_.stream));
      EVERLONG_CUDA(cudaEventSynchronize(end));
      EVERLONG_CUDA(cudaEventElapsedTime(&run, begin, end));
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    std::nth_element(milliseconds.begin(), milliseconds.begin() + kRuns / 2, milliseconds.end());
    return milliseconds[kRuns / 2] / 1e3 / static_cast<double>(times);
  }

  double TimeOf(const std::vector<Matrix>& matrices, int32_t rows, int32_t decode_rows) {
    const auto copies = static_cast<int64_t>(matrices.size());
    const int64_t times = decode_rows > 0 ? std::max<int64_t>(copies, 20) : 4;
    return SecondsOf(times, [&](int64_t i) {
      Multiply(matrices[i % copies], 0, rows, decode_rows, MatMulOut::kActivations);
    });
  }

  double MeasureBandwidth() {
    constexpr int64_t kBytes = int64_t{2} << 30;
    const DeviceMemory memory = AllocateDevice(kBytes);
    ZeroNow(memory.get(), kBytes);
    const double seconds = SecondsOf(4, [&](int64_t) {
      ReadAll<<<8 * context_.num_sms, 512, 0, context_.stream>>>(
          reinterpret_cast<const uint4*>(memory.get()), kBytes / 16,
          reinterpret_cast<uint32_t*>(memory.get()));
    });
    return static_cast<double>(kBytes) / seconds;
  }

  // Of rows from `first` on.
  std::vector<float> Result(const Matrix& w, int32_t first, int32_t rows, int32_t decode_rows) {
    std::vector<float> result(rows * w.rows);
    Multiply(w, first, rows, decode_rows, MatMulOut::kF32);
    EVERLONG_CUDA(cudaStreamSynchronize(context_.stream));
    EVERLONG_CUDA(cudaMemcpy(result.data(), out_.get(), result.size() * 4, cudaMemcpyDeviceToHost));
    return result;
  }

  double Difference(const Matrix& w, int32_t rows) {
    const std::vector<float> decoded = Result(w, 0, rows, rows);
    const std::vector<float> prompt = Result(w, 0, rows, 0);
    const std::vector<float> alone = Result(w, rows - 1, 1, 1);
    if (!std::equal(alone.begin(), alone.end(), decoded.end() - w.rows)) {
      throw std::runtime_error("a decoded row depends on the rows beside it");
    }
    double most = 0.0;
    double largest = 0.0;
    for (size_t i = 0; i < decoded.size(); ++i) {
      if (!std::isfinite(decoded[i])) throw std::runtime_error("a result is not finite");
      most = std::max(most, std::abs(static_cast<double>(decoded[i]) - prompt[i]));
      largest = std::max(largest, std::abs(static_cast<double>(prompt[i])));
    }
    return most / largest;
  }

  void Report(const Shape& shape, int64_t rows, double seconds) const {
    const auto weights = static_cast<double>(shape.rows * shape.cols);
    const double rate = weights * static_cast<double>(ByteSize(type_)) / seconds;
    std::printf("%7lld %6lld %5lld %9.2f %8.0f %5.1f%% %8.1f", static_cast<long long>(shape.rows),
                static_cast<long long>(shape.cols), static_cast<long long>(rows), seconds * 1e6,
                rate / 1e9, 100 * rate / bandwidth_,
                2 * weights * static_cast<double>(rows) / seconds / 1e12);
  }

  DType type_;
  std::shared_ptr<Linear> linear_;
  Context context_;
  double bandwidth_ = 0.0;
  DeviceMemory x_;
  DeviceMemory out_;
};

}  // namespace
}  // namespace everlong::cuda

// Usage: everlong_cuda_linear_bench [step]: without the single products
int main(int argc, char**) try {
  using everlong::DType;
  for (const DType type : {DType::kBF16, DType::kF8}) {
    everlong::cuda::Bench bench(type);
    bench.CheckFused();
    const std::vector<everlong::cuda::Shape> shapes = {{4096, 4096},  {6144, 4096},   {28672, 4096},
                                                       {4096, 14336}, {128256, 4096}, {2048, 2048},
                                                       {576, 1536}};
    if (argc < 2) {
      for (const everlong::cuda::Shape& shape : shapes) bench.Run(shape);
    }
    for (const int32_t rows : {1, 8, 16, 32}) bench.RunStep(rows);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
