// How the engine divides the memory of a device that has its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>

#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kElsewhere = 5000;  // bytes that somebody else uses

// A device with so many bytes of its own.
class SmallDevice final : public HookedKernels {
 public:
  explicit SmallDevice(int64_t total)
      : HookedKernels([] {}), memory_{.total = total, .free = total - kElsewhere} {}

  std::optional<MemoryBytes> memory() const override { return memory_; }
  void* Allocate(int64_t bytes) override {
    Take(bytes);
    return HookedKernels::Allocate(bytes);
  }
  Matrix LoadMatrix(std::span<const HostMatrix> parts) override {
    const Matrix matrix = HookedKernels::LoadMatrix(parts);
    Take(matrix.rows * matrix.cols * ByteSize(DType::kF32));
    return matrix;
  }

 private:
  void Take(int64_t bytes) {
    if (bytes > memory_.free) throw std::bad_alloc();
    memory_.free -= bytes;
  }

  MemoryBytes memory_;
};

// Pages of all layers, dense attention.
EngineOptions DefaultOptions() {
  EngineOptions options = SmallOptions();
  options.kv_device_bytes = 0;
  options.attention.all.mode = AttentionMode::kDense;
  return options;
}

absl::StatusOr<std::unique_ptr<Engine>> CreateOn(int64_t total, const EngineOptions& options) {
  return Engine::Create(std::make_unique<TinyCheckpoint>(1), std::make_unique<SmallDevice>(total),
                        options);
}

// What weights and activations take.
int64_t ModelBytes(const EngineOptions& options) {
  const auto engine = *CreateOn(int64_t{1} << 30, options);
  const MemoryUse use = engine->Stats().memory;
  return use.weights + use.activations;
}

TEST(DeviceMemoryTest, TheCacheGetsNineTenthsOfWhatWeightsAndActivationsLeave) {
  const EngineOptions options = DefaultOptions();
  const int64_t model = ModelBytes(options);
  const int64_t left = 40 * kTinyPageBytes;
  const auto engine = *CreateOn(kElsewhere + model + left, options);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.kv_pages_total, 36);
  EXPECT_EQ(stats.memory.kv, 36 * kTinyPageBytes);
  EXPECT_EQ(stats.memory.weights + stats.memory.activations, model);
  EXPECT_EQ(stats.memory.other, kElsewhere);
}

TEST(DeviceMemoryTest, NoMoreIsTakenThanAllSequencesCanUse) {
  const auto engine = *CreateOn(int64_t{1} << 30, DefaultOptions());
  EXPECT_EQ(engine->Stats().kv_pages_total, 8 * 1024 / 64);
  EXPECT_EQ(engine->options().max_batch_tokens, 128);
  EngineOptions options = DefaultOptions();
  options.max_batch_tokens = 0;
  EXPECT_EQ((*CreateOn(int64_t{1} << 30, options))->options().max_batch_tokens, 8192);
}

TEST(DeviceMemoryTest, EveryUseIsCounted) {
  EngineOptions options = DefaultOptions();
  options.attention.all.mode = AttentionMode::kAuto;
  const auto engine = *CreateOn(int64_t{1} << 30, options);
  const MemoryUse use = engine->Stats().memory;
  for (const int64_t part : {use.weights, use.activations, use.kv, use.index, use.selection}) {
    EXPECT_GT(part, 0);
  }
  EXPECT_EQ(use.other, kElsewhere);
}

TEST(DeviceMemoryTest, AContextThatDoesNotFitIsRefusedWithTheOneThatWould) {
  const EngineOptions options = DefaultOptions();  // 16 pages a context
  const int64_t total = kElsewhere + ModelBytes(options) + 10 * kTinyPageBytes;
  const absl::Status refused = CreateOn(total, options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const std::string message(refused.message());
  EXPECT_THAT(message, HasSubstr("max_context: 1024 tokens need a KV cache of 262144 bytes"));
  EXPECT_THAT(message,
              HasSubstr("163840 are free, nine tenths of which hold a max_context of 576"));
  EngineOptions smaller = options;
  smaller.max_context = 576;
  EXPECT_TRUE(CreateOn(total, smaller).ok());
}

TEST(DeviceMemoryTest, ABudgetThatIsNotFreeIsRefused) {
  EngineOptions options = DefaultOptions();
  options.kv_device_bytes = 20 * kTinyPageBytes;
  const int64_t model = ModelBytes(options);
  EXPECT_TRUE(CreateOn(kElsewhere + model + 20 * kTinyPageBytes, options).ok());
  const absl::Status refused = CreateOn(kElsewhere + model + 19 * kTinyPageBytes, options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("kv_device_bytes: 311296 of the device's"));
}

TEST(DeviceMemoryTest, WeightsThatDoNotFitAreRefusedWithTheNumbers) {
  const EngineOptions options = DefaultOptions();
  const int64_t total = kElsewhere + ModelBytes(options) - 1;
  EngineOptions roomy = options;
  roomy.max_context = 64;  // so that not the cache is what does not fit
  const absl::Status refused = CreateOn(total, roomy).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const std::string message(refused.message());
  EXPECT_THAT(message, HasSubstr("23616 parameters"));
  EXPECT_THAT(message, HasSubstr("max_batch_tokens 128"));
  EXPECT_THAT(message, HasSubstr(std::to_string(total - kElsewhere)));
}

}  // namespace
}  // namespace everlong
