// The call half of the contract: everything the engine asks of a device. Arguments and shapes are
// in args.h. One engine thread calls; work may be asynchronous until Sync. Arguments that break the
// contract are bugs and abort; a device fault throws DeviceError. Where std::bad_alloc comes out of
// a step, the step is lost; after Sync another may begin.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels/args.h"

namespace everlong {

class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A row-major matrix in host memory at any byte, e.g. a view into a mapped checkpoint. Rows lie
// back to back, RowBytes(type, cols) each; `cols` is a multiple of BlockOf(type).elements.
struct HostMatrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  DType type = DType::kF32;
  std::shared_ptr<const void> owner;  // keeps `data` alive where its source does not
};

struct MemoryBytes {
  int64_t total = 0;
  int64_t free = 0;
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual std::string_view name() const = 0;  // "reference", "cpu", "cuda"
  // For people: "cuda: NVIDIA H100 80GB HBM3".
  virtual std::string description() const { return std::string(name()); }
  virtual DType activation_type() const = 0;
  // What a KvCache may hold, the best choice first.
  virtual std::span<const DType> kv_types() const = 0;
  // Of a device that has memory of its own; else nothing. Any thread.
  virtual std::optional<MemoryBytes> memory() const = 0;

  // Device memory, zeroed, aligned to at least 64 bytes. Throws std::bad_alloc. Pages that are
  // never touched cost nothing on the CPU backends, so a large KV cache can be reserved.
  virtual void* Allocate(int64_t bytes) = 0;
  virtual void Free(void* device) = 0;
  virtual void Upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void Download(void* host, const void* device, int64_t bytes) = 0;

  // Stacks `parts` (equal cols and type) and packs them for MatMul and Embed. The parts may be
  // released afterwards.
  virtual Matrix LoadMatrix(std::span<const HostMatrix> parts) = 0;

  // Starts a step: everything below refers to this layout until the next one.
  virtual void BeginStep(const StepLayout& layout) = 0;

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void MatMul(const MatMulArgs& args) = 0;
  virtual void StoreKv(const StoreKvArgs& args) = 0;
  virtual void IndexKeys(const IndexKeysArgs& args) = 0;
  virtual void Select(const SelectArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  virtual void GatedActivation(const GatedActivationArgs& args) = 0;
  virtual void Sample(const SampleArgs& args) = 0;
  virtual void CopyPages(const CopyPagesArgs& args) = 0;

  // Waits for all calls so far.
  virtual void Sync() = 0;
};

// Scalar, double accumulation: the specification of every operation.
std::unique_ptr<Kernels> MakeReferenceKernels();

// SIMD chosen at run time, `num_threads` threads in all including the caller's; 0: one per core.
std::unique_ptr<Kernels> MakeCpuKernels(int num_threads);

// On the first NVIDIA GPU; matrices are kept in `weight_type`, kBF16 or kF8. The backend is a
// module that the first call opens. Null where there is no such module, no GPU or too old a driver;
// `why` then gives the reason.
std::unique_ptr<Kernels> MakeCudaKernels(DType weight_type, std::string* why);

}  // namespace everlong
