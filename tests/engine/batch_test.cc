// How steps are laid out: which rows are decoded, and what the model is told of them.
#include "engine/batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

constexpr int64_t kPrompt = 200;

// Expects of every step that, of contexts with kPrompt tokens of prompt, the rows from the prompt's
// last one on are decoded, and no others.
class CheckingKernels final : public HookedKernels {
 public:
  CheckingKernels() : HookedKernels([] {}) {}

  void BeginStep(const StepLayout& layout) override {
    HookedKernels::BeginStep(layout);
    num_tokens_ = layout.num_tokens;
    num_decode_ = layout.num_decode;
    first_output_ = 0;
    output_rows_.assign(layout.output_rows, layout.output_rows + layout.num_outputs);
    EXPECT_TRUE(std::is_sorted(output_rows_.begin(), output_rows_.end()));
    for (int32_t s = 0; s < layout.num_sequences; ++s) {
      const int64_t first = layout.context_begin[s];
      const int64_t last = first + layout.query_begin[s + 1] - layout.query_begin[s] - 1;
      if (s < layout.num_decode) {
        EXPECT_EQ(layout.query_begin[s], s);
        EXPECT_EQ(first, last);
        EXPECT_GE(first, kPrompt - 1);
        ++times_decoded[first];
      } else {
        EXPECT_LT(last, kPrompt - 1);
      }
    }
    for (int32_t i = 0; i < layout.num_plans; ++i) CheckBlocks(layout.plans[i]);
    mixed += layout.num_decode > 0 && layout.num_decode < layout.num_tokens ? 1 : 0;
  }

  void MatMul(const MatMulArgs& args) override {
    HookedKernels::MatMul(args);
    if (args.w.rows != kTinyVocab) {
      EXPECT_EQ(args.rows, num_tokens_);
      EXPECT_EQ(args.decode_rows, num_decode_);
      return;
    }
    const auto begin = output_rows_.begin() + first_output_;
    first_output_ += args.rows;
    EXPECT_EQ(args.decode_rows, std::count_if(begin, begin + args.rows,
                                              [&](int32_t row) { return row < num_decode_; }));
  }

  std::map<int64_t, int> times_decoded;  // by position
  int mixed = 0;                         // steps with rows of both kinds

 private:
  void CheckBlocks(const AttentionPlan& plan) const {
    for (int32_t i = 0; i < plan.num_blocks; ++i) {
      const QueryBlock& block = plan.blocks[i];
      if (block.first_row < num_decode_) {
        EXPECT_EQ(block.num_rows, 1);
        EXPECT_EQ(block.sequence, block.first_row);
      }
      EXPECT_TRUE(i == 0 || block.first_row > plan.blocks[i - 1].first_row);
    }
  }

  int32_t num_tokens_ = 0;
  int32_t num_decode_ = 0;
  int32_t first_output_ = 0;
  std::vector<int32_t> output_rows_;
};

class BatchTest : public ::testing::Test {
 protected:
  // Three requests, one step after the other.
  void Run(
      EngineOptions options, const std::function<void(Request&)>& change = [](Request&) {}) {
    auto owned = std::make_unique<CheckingKernels>();
    kernels_ = owned.get();
    engine_ = MakeTinyEngine(options, std::move(owned));
    std::vector<Request> requests;
    for (uint32_t i = 0; i < 3; ++i) {
      requests.push_back(GreedyRequest(RandomPrompt(i, kPrompt), kOutput));
      change(requests.back());
    }
    for (const auto& sink : RunStaggered(*engine_, requests)) {
      EXPECT_EQ(sink->tokens().size(), size_t{kOutput});
    }
    EXPECT_GT(kernels_->mixed, 0);
  }

  static constexpr int kOutput = 300;
  CheckingKernels* kernels_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

TEST_F(BatchTest, DecodesFromThePromptsLastTokenOn) {
  Run(SmallOptions());
  for (int64_t position = kPrompt - 1; position < kPrompt - 1 + kOutput; ++position) {
    EXPECT_EQ(kernels_->times_decoded[position], 3) << position;
  }
}

TEST_F(BatchTest, ScoresThePromptInRowsThatAreNotDecoded) {
  Run(SmallOptions(), [](Request& request) { request.prompt_logprobs = 2; });
}

TEST_F(BatchTest, SeveralSamplesDecodeThePromptsLastTokenEach) {
  Run(SmallOptions(), [](Request& request) { request.num_samples = 2; });
  EXPECT_EQ(kernels_->times_decoded[kPrompt - 1], 6);
}

TEST_F(BatchTest, PreemptedOutputsAreDecodedAgain) {
  EngineOptions options = SmallOptions();
  options.max_context = 640;
  options.kv_device_bytes = 12 * kTinyPageBytes;
  Run(options);
  EXPECT_GT(engine_->Stats().preemptions, 0u);
  EXPECT_GT(kernels_->times_decoded[kPrompt - 1], 3);
}

}  // namespace
}  // namespace everlong
