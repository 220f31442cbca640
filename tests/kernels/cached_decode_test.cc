// What a decode step with cached selections reads does not depend on the context's length: memory
// that it has no need of is closed to it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/selection.h"

namespace everlong {
namespace {

constexpr int32_t kQHeads = 4;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kHeadDim = 64;
constexpr int64_t kContext = 8000;
constexpr int64_t kWindow = 72;

// A copy of a cache, every KV block of which lies in memory pages of its own.
class GuardedCache {
 public:
  explicit GuardedCache(const HostCache& cache)
      : shape(cache.shape), size_(static_cast<int64_t>(cache.bytes.size())) {
    shape.base = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(shape.base, MAP_FAILED);
    std::memcpy(shape.base, cache.bytes.data(), size_);
  }
  ~GuardedCache() { munmap(shape.base, size_); }
  GuardedCache(const GuardedCache&) = delete;
  GuardedCache& operator=(const GuardedCache&) = delete;

  void CloseAll() { EXPECT_EQ(mprotect(shape.base, size_, PROT_NONE), 0); }
  // The block that the key at this byte begins.
  void Open(int64_t key_byte) {
    auto* block = static_cast<std::byte*>(shape.base) + key_byte;
    EXPECT_EQ(mprotect(block, shape.BlockBytes(), PROT_READ), 0);
  }

  KvCache shape;

 private:
  int64_t size_;
};

// One decode step of a sequence whose selection stays as it was.
struct CachedDecode {
  CachedDecode(Positions positions, DType activation_type)
      : cache(DType::kF32, kKvHeads, kHeadDim, step.num_pages(), /*num_layers=*/1),
        q(RandomValues(random, kQHeads * kHeadDim, activation_type)) {
    FillCache(cache, step, /*layer=*/0, random);
    step.blocks = {{.num_rows = 1,
                    .num_sinks = 16,
                    .window_begin = (kContext - kWindow) / 8 * 8,
                    .positions = positions,
                    .clip_distance = 136,
                    .slot = 0,
                    .select = 0,
                    .first_stage = 1,
                    .first = false}};
    selection.List(0, 0, 0, kFinalList) = {2, 3, 77, 400, 988};
    selection.List(0, 0, 1, kFinalList) = {9, 500, 501, 502, 900};
  }

  Values Run(Device& device, const KvCache& keys) const {
    StepLayout layout = step.Layout();
    AttentionPlan plan = layout.plans[0];
    plan.num_selects = 1;
    plan.selects = &select;
    layout.plans = &plan;
    device->BeginStep(layout);
    const SelectArgs args = {.cache = keys,
                             .selection = selection.Place(device),
                             .rope = {.inv_freq = inv_freq},
                             .q = device.PlaceActivations(q),
                             .q_stride = kQHeads * kHeadDim,
                             .q_heads = kQHeads};
    device->Select(args);
    void* out = device.PlaceActivations(Values(q.size()));
    device->Attention({.cache = keys,
                       .selection = args.selection,
                       .rope = args.rope,
                       .q = args.q,
                       .out = out,
                       .q_stride = args.q_stride,
                       .q_heads = kQHeads,
                       .scale = 0.125f});
    return device.ReadActivations(out, static_cast<int64_t>(q.size()));
  }

  // Opens the blocks that the step has to read.
  void OpenNeeded(GuardedCache& guarded) const {
    for (int64_t head = 0; head < kKvHeads; ++head) {
      const auto& selected = selection.List(0, 0, head, kFinalList);
      for (const int64_t p : ReadPositions(step, step.blocks[0], 0, selected)) {
        if (p % kBlockTokens == 0) guarded.Open(cache.KeyByte(0, step.page(0, p), head, p % 64));
      }
    }
  }

  std::mt19937 random{1};
  Step step{random, {{kContext, 1}}};
  HostCache cache;
  HostSelection selection{/*layers=*/1, /*slots=*/1, kKvHeads, /*capacity=*/8};
  SelectParams select = {.keep_blocks = 5, .distance = 136};
  const float* inv_freq = InverseFrequencies(kHeadDim, 1.0);
  Values q;
};

using Parameters = std::tuple<Backend, Positions>;

std::string ParametersName(const ::testing::TestParamInfo<Parameters>& info) {
  const char* const names[] = {"True", "Streaming", "Clipped"};
  return std::get<0>(info.param).name + names[static_cast<int>(std::get<1>(info.param))];
}

class CachedDecodeTest : public ::testing::TestWithParam<Parameters> {};
INSTANTIATE_TEST_SUITE_P(Backends, CachedDecodeTest,
                         ::testing::Combine(::testing::ValuesIn(HostBackends()),
                                            ::testing::Values(Positions::kTrue,
                                                              Positions::kStreaming,
                                                              Positions::kClipped)),
                         ParametersName);

// A read of anything else ends the test with a fault.
TEST_P(CachedDecodeTest, ReadsOnlySinksSelectionAndWindow) {
  const auto& [backend, positions] = GetParam();
  Device device(backend);
  const CachedDecode decode(positions, device.activation_type());
  ASSERT_EQ(decode.cache.shape.BlockElements() * 4 % sysconf(_SC_PAGESIZE), 0);
  GuardedCache guarded(decode.cache);
  const Values expected = decode.Run(device, guarded.shape);
  guarded.CloseAll();
  decode.OpenNeeded(guarded);
  ExpectSameBits(decode.Run(device, guarded.shape), expected);
  device.FreePlaced();
}

}  // namespace
}  // namespace everlong
