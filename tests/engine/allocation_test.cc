// What the engine allocates in a decode step once everything has its size: nothing.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/count_allocations.h"
#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

// Computes nothing, and so allocates nothing: every token is the same.
class IdleKernels final : public HookedKernels {
 public:
  IdleKernels() : HookedKernels([] {}) {}
  void BeginStep(const StepLayout&) override {}
  void Embed(const EmbedArgs&) override {}
  void RmsNorm(const RmsNormArgs&) override {}
  void MatMul(const MatMulArgs&) override {}
  void StoreKv(const StoreKvArgs&) override {}
  void IndexKeys(const IndexKeysArgs&) override {}
  void Select(const SelectArgs&) override {}
  void Attention(const AttentionArgs&) override {}
  void GatedActivation(const GatedActivationArgs&) override {}
  void Sample(const SampleArgs& args) override {
    std::fill_n(args.tokens, args.rows, 'a');
    std::fill_n(args.logprobs, args.rows, -1.0f);
  }
};

class DroppingSink : public EventSink {
 public:
  void OnEvent(Event) override {}
};

// Pages and tokens of neither sequence reach a power of two, where their lists would grow.
TEST(AllocationTest, ADecodeStepAllocatesNothing) {
  EngineOptions options;
  options.max_context = 2048;
  auto engine = MakeTinyEngine(options, std::make_unique<IdleKernels>());
  const auto submit = [&](int64_t prompt, int64_t output, const AttentionOverrides& attention) {
    Request request = GreedyRequest(RandomPrompt(1, prompt), output);
    request.attention = attention;
    request.fidelity_every = 4;
    ASSERT_TRUE(engine->Submit(request, std::make_shared<DroppingSink>()).ok());
  };
  AttentionOverrides sparse = {.mode = AttentionMode::kInfiniteHip,
                               .positions = PositionRule::kClipped,
                               .budget = 64,
                               .num_sinks = 16,
                               .window = 64};
  for (int i = 0; i < 4; ++i) submit(1900, 20, sparse);  // gives everything its size
  RunToEnd(*engine);
  submit(600, 300, {});
  submit(620, 300, sparse);
  sparse.preset = "3k";
  submit(640, 300, sparse);
  for (int step = 0; step < 20; ++step) ASSERT_TRUE(engine->Step());
  for (int step = 0; step < 200; ++step) {
    const int64_t before = NumAllocations();
    ASSERT_TRUE(engine->Step());
    ASSERT_EQ(NumAllocations() - before, 0) << "step " << step;
  }
}

}  // namespace
}  // namespace everlong
