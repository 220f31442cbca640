// What requests are told of their attention's fidelity, against attention computed from what the
// kernels were given.
#include "engine/fidelity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <map>
#include <numeric>

#include "tests/engine/hooked_kernels.h"
#include "tests/engine/tiny_model.h"

namespace everlong {
namespace {

constexpr double kEpsilon = 0x1p-24;

struct Expected {
  LayerFidelity value;
  double tolerance = 0.0;  // of both numbers
};

// Computes the fidelity of each sparse token that is decoded, of one context, and counts the
// attention that was asked for.
class WatchedKernels final : public HookedKernels {
 public:
  explicit WatchedKernels(std::unique_ptr<Kernels> inner)
      : HookedKernels([] {}, std::move(inner)) {}

  void BeginStep(const StepLayout& layout) override {
    HookedKernels::BeginStep(layout);
    pages_.assign(layout.pages, layout.pages + layout.page_begin[1]);
    position_ = layout.context_begin[0];
    blocks_.clear();
    for (int32_t i = 0; i < layout.num_plans; ++i) {
      const AttentionPlan& plan = layout.plans[i];
      const bool decodes = layout.num_decode > 0 && plan.num_blocks > 0;
      blocks_.push_back(decodes ? plan.blocks[0] : QueryBlock());
    }
  }

  void Attention(const AttentionArgs& args) override {
    HookedKernels::Attention(args);
    ++(args.lse == nullptr ? num_plain : num_measured);
    const QueryBlock& block = blocks_[args.plan];
    if (args.lse != nullptr || block.window_begin == 0) return;
    layers[args.layer].push_back(Compute(args, block));
  }

  std::map<int64_t, std::vector<Expected>> layers;
  int64_t num_plain = 0;
  int64_t num_measured = 0;

 private:
  // A key, or the value behind it.
  std::vector<double> Read(const AttentionArgs& args, int64_t head, int64_t position,
                           bool value) const {
    const KvCache& c = args.cache;
    const int64_t slot = position % kPageTokens;
    const auto* at = reinterpret_cast<const float*>(static_cast<const std::byte*>(c.base) +
                                                    args.layer * c.layer_stride_bytes +
                                                    pages_[position / kPageTokens] * c.PageBytes());
    at += (head * kPageBlocks + slot / kBlockTokens) * 2 * kBlockTokens * c.head_dim;
    at += ((value ? kBlockTokens : 0) + slot % kBlockTokens) * c.head_dim;
    return {at, at + c.head_dim};
  }

  static std::vector<double> Rotated(std::vector<double> x, int64_t position, const Rope& rope) {
    for (size_t i = 0; i < x.size() / 2; ++i) {
      const std::complex<double> turned =
          std::complex(x[i], x[i + x.size() / 2]) *
          std::polar<double>(rope.scale, static_cast<double>(position) * rope.inv_freq[i]);
      x[i] = turned.real();
      x[i + x.size() / 2] = turned.imag();
    }
    return x;
  }

  std::vector<bool> Read(const AttentionArgs& args, const QueryBlock& block, int64_t head) const {
    std::vector<bool> read(position_ + 1, false);
    std::fill_n(read.begin(), block.num_sinks, true);
    std::fill(read.begin() + block.window_begin, read.end(), true);
    if (block.slot < 0) return read;
    const int64_t list = args.selection.List(args.layer, block.slot, head, kFinalList);
    for (int32_t i = 0; i < args.selection.counts[list]; ++i) {
      const int32_t b = args.selection.blocks[list * args.selection.capacity + i];
      std::fill_n(read.begin() + b * kBlockTokens, kBlockTokens, true);
    }
    return read;
  }

  std::vector<double> Scores(const AttentionArgs& args, const QueryBlock& block,
                             int64_t head) const {
    const int64_t dim = args.cache.head_dim;
    const auto* from =
        static_cast<const float*>(args.q) + block.first_row * args.q_stride + head * dim;
    const std::vector<double> query(from, from + dim);
    const bool clip = block.positions != Positions::kTrue;
    std::vector<double> scores;
    for (int64_t p = 0; p <= position_; ++p) {
      const bool far = clip && p < block.window_begin;
      const auto a = Rotated(query, far ? block.clip_distance : position_, args.rope);
      const auto b = Rotated(Read(args, head / (args.q_heads / args.cache.kv_heads), p, false),
                             far ? 0 : p, args.rope);
      scores.push_back(args.scale * std::inner_product(a.begin(), a.end(), b.begin(), 0.0));
    }
    return scores;
  }

  Expected Compute(const AttentionArgs& args, const QueryBlock& block) const {
    Expected expected{.value = {.recall = 0.0}};
    double squares = 0.0;
    double difference = 0.0;
    double largest = 0.0;
    for (int64_t head = 0; head < args.q_heads; ++head) {
      const int64_t kv_head = head / (args.q_heads / args.cache.kv_heads);
      const std::vector<bool> read = Read(args, block, kv_head);
      const std::vector<double> scores = Scores(args, block, head);
      double sum[2] = {};
      std::vector<double> out[2];
      out[0].resize(args.cache.head_dim);
      out[1].resize(args.cache.head_dim);
      for (int64_t p = 0; p <= position_; ++p) {
        largest = std::max(largest, std::abs(scores[p]));
        const std::vector<double> value = Read(args, kv_head, p, true);
        for (int all = read[p] ? 0 : 1; all < 2; ++all) {
          sum[all] += std::exp(scores[p]);
          for (size_t d = 0; d < value.size(); ++d) out[all][d] += std::exp(scores[p]) * value[d];
        }
      }
      expected.value.recall += sum[0] / sum[1] / args.q_heads;
      for (size_t d = 0; d < out[0].size(); ++d) {
        squares += std::pow(out[1][d] / sum[1], 2);
        difference += std::pow(out[0][d] / sum[0] - out[1][d] / sum[1], 2);
      }
    }
    expected.value.error = std::sqrt(difference / squares);
    // A rotated product of head_dim terms rounds some head_dim + 33 times, exponents and logarithms
    // a few times more, a sum of weights once a key; outputs have two sums for either side.
    const double roundings =
        (args.cache.head_dim + 48) * (largest + 1) + static_cast<double>(position_) + 20;
    expected.tolerance = 8 * kEpsilon * roundings;
    return expected;
  }

  std::vector<int32_t> pages_;
  int64_t position_ = 0;
  std::vector<QueryBlock> blocks_;
};

Request SparseRequest(int64_t prompt, int64_t output, const char* preset, PositionRule positions,
                      int32_t budget = 64) {
  Request request = GreedyRequest(RandomPrompt(3, prompt), output);
  request.attention = {.mode = AttentionMode::kInfiniteHip,
                       .preset = preset,
                       .positions = positions,
                       .budget = budget,
                       .num_sinks = 16,
                       .window = 64};
  return request;
}

std::shared_ptr<RecordingSink> RunAlone(Engine& engine, const Request& request) {
  auto sink = SubmitTo(engine, request);
  RunToEnd(engine);
  return sink;
}

class FidelityTest : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, FidelityTest, ::testing::Values("reference", "cpu"));

TEST_P(FidelityTest, IsThatOfTheSelectionAtTheSamePositions) {
  constexpr int kOutput = 20;
  for (const char* preset : {"default", "3k"}) {
    for (const PositionRule positions :
         {PositionRule::kTrue, PositionRule::kStreaming, PositionRule::kClipped}) {
      auto owned = std::make_unique<WatchedKernels>(MakeKernels(GetParam()));
      WatchedKernels& kernels = *owned;
      auto engine = MakeTinyEngine(SmallOptions(), std::move(owned));
      Request request = SparseRequest(700, kOutput, preset, positions);
      request.fidelity_every = 1;
      const AttentionUse use = RunAlone(*engine, request)->end().attention;
      EXPECT_EQ(use.compared_tokens, kOutput);
      ASSERT_EQ(use.fidelity.size(), 2u);
      for (size_t layer = 0; layer < use.fidelity.size(); ++layer) {
        const std::vector<Expected>& expected = kernels.layers[static_cast<int64_t>(layer)];
        ASSERT_EQ(expected.size(), size_t{kOutput});
        LayerFidelity mean = {.recall = 0.0};
        double tolerance = 0.0;
        for (const Expected& e : expected) {
          mean.recall += e.value.recall / kOutput;
          mean.error += e.value.error / kOutput;
          tolerance += e.tolerance / kOutput;
        }
        EXPECT_NEAR(use.fidelity[layer].recall, mean.recall, tolerance);
        EXPECT_NEAR(use.fidelity[layer].error, mean.error, tolerance);
        EXPECT_LT(mean.recall, 0.9);  // there is something to lose, and more than the tolerance
        EXPECT_GT(mean.error, 0.1);
        EXPECT_LT(tolerance, 0.01);
      }
    }
  }
}

TEST_P(FidelityTest, IsPerfectWhereEverythingIsSelected) {
  for (const char* preset : {"default", "3k"}) {
    auto owned = std::make_unique<WatchedKernels>(MakeKernels(GetParam()));
    WatchedKernels& kernels = *owned;
    auto engine = MakeTinyEngine(SmallOptions(), std::move(owned));
    Request request = SparseRequest(700, 20, preset, PositionRule::kClipped, /*budget=*/1024);
    request.fidelity_every = 1;
    const AttentionUse use = RunAlone(*engine, request)->end().attention;
    ASSERT_EQ(use.fidelity.size(), 2u);
    for (const LayerFidelity& layer : use.fidelity) {
      EXPECT_NEAR(layer.recall, 1.0, kernels.layers[0][0].tolerance);
      EXPECT_NEAR(layer.error, 0.0, kernels.layers[0][0].tolerance);
    }
  }
}

TEST_P(FidelityTest, DisturbsNobodyInABatch) {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 5; ++i) {
    requests.push_back(GreedyRequest(RandomPrompt(i, 100 + 150 * i), 30));
    requests.back().attention =
        SparseRequest(1, 1, i % 2 == 0 ? "default" : "3k", PositionRule::kClipped).attention;
    if (i == 4) requests.back().fidelity_every = 3;
  }
  auto engine = MakeTinyEngine(SmallOptions(), MakeKernels(GetParam()));
  const AttentionUse alone = RunAlone(*engine, requests[4])->end().attention;
  EXPECT_GT(alone.compared_tokens, 0);
  std::vector<std::vector<int32_t>> tokens;
  for (Request request : requests) {
    request.fidelity_every.reset();
    tokens.push_back(RunAlone(*engine, request)->tokens());
  }
  const auto sinks = RunStaggered(*engine, requests);
  for (size_t i = 0; i < sinks.size(); ++i) {
    EXPECT_EQ(sinks[i]->tokens(), tokens[i]) << i;
    const AttentionUse& use = sinks[i]->end().attention;
    EXPECT_EQ(use.compared_tokens, i == 4 ? alone.compared_tokens : 0);
  }
  const AttentionUse& together = sinks[4]->end().attention;
  for (size_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(together.fidelity[layer].recall, alone.fidelity[layer].recall);
    EXPECT_EQ(together.fidelity[layer].error, alone.fidelity[layer].error);
  }
}

TEST(FidelitySamplingTest, OneTokenOfSoManyIsComparedAndCounted) {
  auto owned = std::make_unique<WatchedKernels>(MakeReferenceKernels());
  WatchedKernels& kernels = *owned;
  EngineOptions options = SmallOptions();
  options.fidelity_every = 8;
  auto engine = MakeTinyEngine(options, std::move(owned));
  Request request = SparseRequest(700, 33, "default", PositionRule::kClipped);
  EXPECT_EQ(RunAlone(*engine, request)->end().attention.compared_tokens, 4);  // 0, 9, 18, 27
  EXPECT_EQ(kernels.num_measured, 4 * 2 * 2);  // tokens, layers, kept and exact
  for (const auto& histograms : {engine->Stats().layer_recall, engine->Stats().layer_error}) {
    ASSERT_EQ(histograms.size(), 2u);
    for (const Histogram& h : histograms) {
      EXPECT_EQ(std::accumulate(h.counts.begin(), h.counts.end(), uint64_t{0}), 4u);
    }
  }
  // Neither dense tokens nor requests that ask for none cost anything.
  request.fidelity_every = 0;
  EXPECT_EQ(RunAlone(*engine, request)->end().attention.compared_tokens, 0);
  request.fidelity_every = 1;
  request.attention = {};
  EXPECT_TRUE(RunAlone(*engine, request)->end().attention.fidelity.empty());
  EXPECT_EQ(kernels.num_measured, 4 * 2 * 2);
}

TEST(FidelitySamplingTest, DenseLayersLoseNothing) {
  EngineOptions options = SmallOptions();
  options.attention.layers = {{{1}, {.mode = AttentionMode::kDense}}};
  auto engine = MakeTinyEngine(options, MakeReferenceKernels());
  Request request = SparseRequest(700, 4, "default", PositionRule::kClipped);
  request.fidelity_every = 1;
  const AttentionUse use = RunAlone(*engine, request)->end().attention;
  EXPECT_EQ(use.compared_tokens, 4);
  EXPECT_LT(use.fidelity[0].recall, 1.0);
  EXPECT_EQ(use.fidelity[1].recall, 1.0);
  EXPECT_EQ(use.fidelity[1].error, 0.0);
}

}  // namespace
}  // namespace everlong
