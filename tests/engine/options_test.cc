// What the engine refuses to be made with, and what follows from its options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "tests/engine/engine_fixture.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

TEST(OptionsTest, SparseAttentionThatTheServerHasNoRoomForIsRefused) {
  EngineOptions options = SmallOptions();
  auto engine = MakeTinyEngine(options, MakeReferenceKernels());
  Request request = GreedyRequest(RandomPrompt(1, 10), 1);
  request.attention.budget = 8192;
  const absl::Status large = Submitted(*engine, request);
  EXPECT_THAT(std::string(large.message()), HasSubstr("1024 blocks or chunks pass"));
  EXPECT_FALSE(engine->attention_presets().empty());

  options.attention.all.mode = AttentionMode::kDense;
  engine = MakeTinyEngine(options, MakeReferenceKernels());
  request.attention = {.mode = AttentionMode::kInfiniteHip};
  const absl::Status sparse = Submitted(*engine, request);
  EXPECT_THAT(std::string(sparse.message()), HasSubstr("dense attention only"));
  EXPECT_TRUE(engine->attention_presets().empty());
}

TEST(OptionsTest, WrongOptionsAreRefusedWithTheirNumbers) {
  const auto create = [](auto change) {
    EngineOptions options = SmallOptions();
    change(options);
    return Engine::Create(std::make_unique<TinyCheckpoint>(1), MakeReferenceKernels(), options)
        .status();
  };
  EXPECT_THAT(std::string(create([](auto& o) { o.max_batch_tokens = 1; }).message()),
              HasSubstr("max_batch_tokens: 1"));
  EXPECT_THAT(std::string(create([](auto& o) { o.max_running = 129; }).message()),
              HasSubstr("max_running: 129"));
  EXPECT_THAT(std::string(create([](auto& o) { o.max_context = 1; }).message()),
              HasSubstr("max_context: 1"));
  const absl::Status small = create([](auto& o) { o.kv_device_bytes = 15 * kTinyPageBytes; });
  EXPECT_EQ(small.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(small.message()), HasSubstr("hold 832 tokens"));
}

TEST(OptionsTest, TheCacheHoldsWhatTheDeviceStores) {
  EngineOptions options = SmallOptions();
  options.kv_type.reset();
  const auto create = [&](std::unique_ptr<Kernels> kernels) {
    return Engine::Create(std::make_unique<TinyCheckpoint>(1), std::move(kernels), options);
  };
  EXPECT_EQ((*create(MakeCpuKernels(1)))->options().kv_type, DType::kF16);
  options.kv_type = DType::kF8;
  EXPECT_TRUE(create(MakeReferenceKernels()).ok());
  EXPECT_EQ(std::string(create(MakeCpuKernels(1)).status().message()),
            "kv_type: cpu stores f16, bf16, f32, not fp8");
}

}  // namespace
}  // namespace everlong
