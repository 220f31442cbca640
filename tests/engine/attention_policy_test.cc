#include "engine/attention_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "engine/attention_plan.h"

namespace everlong {
namespace {

using ::testing::HasSubstr;

AttentionPolicy Make(const AttentionOverrides& overrides, int64_t trained_length = 4096) {
  auto policy = MakePolicy({.all = overrides}, 4, trained_length);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *std::move(policy);
}

std::string Refusal(const AttentionOverrides& overrides, int64_t trained_length = 4096) {
  return std::string(MakePolicy({.all = overrides}, 4, trained_length).status().message());
}

const AttentionOverrides kSparse = {.mode = AttentionMode::kInfiniteHip};

// Query blocks of [begin, end) cut into chunks as the scheduler may cut them.
std::vector<QueryBlock> InChunks(const SequencePlan& plan, int64_t begin, int64_t end,
                                 std::mt19937& random) {
  std::vector<QueryBlock> all;
  PlanBuilder builder;
  while (begin < end) {
    int64_t chunk_end = begin + 1;
    if (begin < plan.decode_begin) {
      chunk_end = (begin / 64 + 1 + random() % 4) * 64;
      if (chunk_end > plan.decode_begin) chunk_end = plan.decode_begin + random() % 2;
      chunk_end = std::min(chunk_end, end);
    }
    builder.Clear(10);
    builder.Add(plan, 0, 0, static_cast<int32_t>(begin), begin, chunk_end);
    all.insert(all.end(), builder.blocks.begin(), builder.blocks.end());
    begin = chunk_end;
  }
  return all;
}

struct Reads {
  int64_t first;  // of the block
  int64_t end;
  int32_t num_sinks;
  int64_t window_begin;
  int positions;
  int32_t first_stage;
  bool selects;
  bool operator==(const Reads&) const = default;
};

// What each position reads, row by row, dense blocks merged.
std::vector<Reads> ByPosition(const std::vector<QueryBlock>& blocks) {
  std::vector<Reads> reads;
  for (const QueryBlock& b : blocks) {
    const bool dense = b.window_begin == 0;
    for (int64_t row = b.first_row; row < b.first_row + b.num_rows; ++row) {
      reads.push_back({.first = dense ? row : b.first_row,
                       .end = dense ? row + 1 : b.first_row + b.num_rows,
                       .num_sinks = b.num_sinks,
                       .window_begin = b.window_begin,
                       .positions = static_cast<int>(b.positions),
                       .first_stage = b.first_stage,
                       .selects = b.slot >= 0});
    }
  }
  return reads;
}

TEST(AttentionPolicyTest, WhatAPositionReadsDoesNotDependOnChunks) {
  std::mt19937 random(1);
  for (const char* preset : {"default", "3k-flash"}) {
    AttentionOverrides overrides = kSparse;
    overrides.preset = preset;
    overrides.positions = PositionRule::kClipped;
    const AttentionPolicy policy = Make(overrides);
    for (const int64_t prompt : {1, 63, 64, 65, 2000, 5000, 5056, 5057}) {
      const SequencePlan plan = {.policy = &policy, .decode_begin = prompt - 1, .slot = 3};
      const auto whole = ByPosition(InChunks(plan, 0, prompt + 100, random));
      for (int round = 0; round < 5; ++round) {
        EXPECT_EQ(ByPosition(InChunks(plan, 0, prompt + 100, random)), whole) << prompt;
      }
    }
  }
}

TEST(AttentionPolicyTest, SinksSelectionAndWindowLeaveNoHole) {
  std::mt19937 random(2);
  const AttentionPolicy policy = Make(kSparse);
  const SequencePlan plan = {.policy = &policy, .decode_begin = 6000, .slot = 3};
  int64_t row = 0;
  for (const QueryBlock& b : InChunks(plan, 0, 6200, random)) {
    EXPECT_EQ(b.first_row, row);
    row += b.num_rows;
    EXPECT_EQ(b.num_sinks % kBlockTokens, 0);
    EXPECT_EQ(b.window_begin % kBlockTokens, 0);
    EXPECT_LE(b.num_sinks, b.window_begin);
    if (b.window_begin == 0) continue;
    // The window holds at least what is promised and grows by at most a refresh interval.
    EXPECT_LE(b.window_begin, b.first_row - 960);
    EXPECT_GE(b.window_begin, b.first_row - 960 - 2 * kBlockTokens);
    EXPECT_LT(b.first_row - b.window_begin, b.clip_distance);
    EXPECT_GE(b.slot, 0);
  }
  EXPECT_EQ(row, 6200);
}

TEST(AttentionPolicyTest, AutoIsDenseAndTrueWithinTheTrainedLength) {
  std::mt19937 random(3);
  const AttentionPolicy policy = Make({});
  const SequencePlan plan = {.policy = &policy, .decode_begin = 4500, .slot = 0};
  for (const QueryBlock& b : InChunks(plan, 0, 4600, random)) {
    if (b.first_row < 4096) {
      EXPECT_EQ(b.window_begin, 0);
      EXPECT_EQ(b.positions, Positions::kTrue);
    } else {
      EXPECT_GT(b.window_begin, 0);
      EXPECT_EQ(b.positions, Positions::kClipped);
    }
  }
  EXPECT_FALSE(MayBeSparse(policy, 4096));
  EXPECT_TRUE(MayBeSparse(policy, 4097));
}

TEST(AttentionPolicyTest, DecodeStartingInsideTheDenseRangeRefreshesWhenItBecomesSparse) {
  const AttentionPolicy policy = Make({});
  const SequencePlan plan = {.policy = &policy, .decode_begin = 4090, .slot = 5};
  for (int64_t p = 4096; p < 4130; ++p) {
    PlanBuilder builder;
    builder.Add(plan, 0, 0, 0, p, p + 1);
    EXPECT_EQ(builder.blocks[0].first_stage, (p - 4096) % 8 == 0 ? 0 : 1);
    EXPECT_EQ(builder.blocks[0].slot, 5);
  }
}

TEST(AttentionPolicyTest, PaperStagesRefreshAtTheirIntervals) {
  AttentionOverrides overrides = kSparse;
  overrides.preset = "3k";
  const AttentionPolicy policy = Make(overrides);
  const SequencePlan plan = {.policy = &policy, .decode_begin = 5000, .slot = 0};
  for (int64_t t = 0; t < 40; ++t) {
    PlanBuilder builder;
    builder.Add(plan, 0, 0, 0, 5000 + t, 5001 + t);
    const int expected = t % 16 == 0 ? 0 : t % 8 == 0 ? 1 : t % 4 == 0 ? 2 : 3;
    EXPECT_EQ(builder.blocks[0].first_stage, expected) << t;
    EXPECT_EQ(builder.blocks[0].positions, Positions::kStreaming);
  }
}

TEST(AttentionPolicyTest, UseIsTheMeanOverLayers) {
  AttentionConfig config = {.all = {.mode = AttentionMode::kInfiniteHip, .preset = "3k"},
                            .layers = {{{1}, {.mode = AttentionMode::kDense}}}};
  const auto policy = MakePolicy(config, 4, 4096);
  ASSERT_TRUE(policy.ok()) << policy.status();
  std::vector<PlanBuilder> plans(policy->classes.size());
  for (size_t i = 0; i < plans.size(); ++i) {
    plans[i].Add({.policy = &*policy, .decode_begin = 5000}, static_cast<int32_t>(i), 0, 0, 5008,
                 5009);
  }
  const StepUse use = UseOf(*policy, plans, 5008);
  EXPECT_EQ(use.first_stage, 1);
  EXPECT_EQ(use.num_stages, 3);
  const double sparse = (256 + 2048 + 5009 - 3976) / 5009.0;  // the window was set at 5000
  EXPECT_NEAR(use.attended_ratio, (3 * sparse + 1) / 4, 1e-12);
}

TEST(AttentionPolicyTest, LastPromptBlockScoresEveryRow) {
  AttentionOverrides overrides = kSparse;
  overrides.preset = "3k";
  const AttentionPolicy policy = Make(overrides);
  PlanBuilder builder;
  builder.Add({.policy = &policy, .decode_begin = 5000}, 0, 0, 0, 4864, 5000);
  ASSERT_EQ(builder.blocks.size(), 3u);
  EXPECT_TRUE(builder.selects[builder.blocks[1].select].stages[0].pool_rows);
  EXPECT_FALSE(builder.selects[builder.blocks[2].select].stages[0].pool_rows);
}

TEST(AttentionPolicyTest, LayersHaveSettingsOfTheirOwnAndDenseOnesStayDense) {
  AttentionConfig config = {
      .all = kSparse,
      .layers = {{{0}, {.mode = AttentionMode::kDense}}, {{1, 3}, {.budget = 4096}}}};
  auto policy = MakePolicy(config, 5, 8192);
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->layer_class, (std::vector<int32_t>{2, 3, 1, 4, 0}));
  EXPECT_EQ(policy->classes[3].decode.params.keep_blocks, 512);
  EXPECT_EQ(policy->classes[4].decode.params.keep_blocks, 512);
  EXPECT_EQ(SelectionCapacity(*policy), 512);
  auto changed = Override(*policy, {.budget = 1024});
  ASSERT_TRUE(changed.ok());
  EXPECT_EQ(changed->classes[0].decode.params.keep_blocks, 128);
  EXPECT_EQ(changed->classes[2].mode, AttentionMode::kDense);
  config.layers = {{{7}, {}}};
  EXPECT_THAT(std::string(MakePolicy(config, 4, 8192).status().message()), HasSubstr("layers: 7"));
}

TEST(AttentionPolicyTest, EarlyLayersProbeAtChunkNumbers) {
  const AttentionPolicy policy = Make(kSparse);
  EXPECT_EQ(policy.layer_class, (std::vector<int32_t>{1, 1, 1, 0}));
  EXPECT_EQ(policy.classes[0].prefill.params.probes, ProbePositions::kRelative);
  EXPECT_EQ(policy.classes[1].prefill.params.probes, ProbePositions::kChunk);
}

TEST(AttentionPolicyTest, RefusalsNameTheNumbers) {
  EXPECT_THAT(Refusal({.preset = "7k"}), HasSubstr("\"7k\" is none of default, 3k"));
  EXPECT_THAT(Refusal({.window = 32}), HasSubstr("window: 32"));
  EXPECT_THAT(Refusal({.num_sinks = 7}), HasSubstr("sinks: 7"));
  EXPECT_THAT(Refusal({.budget = 12}), HasSubstr("budget: 12"));
  EXPECT_THAT(Refusal({.refresh = {8, 4}}), HasSubstr("2 intervals for a selector of 1 stages"));
  EXPECT_THAT(Refusal({.preset = "3k", .refresh = {8, 3, 1}}), HasSubstr("8 is not a multiple of"));
  EXPECT_THAT(Refusal({.mode = AttentionMode::kInfiniteHip,
                       .positions = PositionRule::kStreaming,
                       .budget = 4096}),
              HasSubstr("sinks 256 + budget 4096 + window 960 + query block 64 = 5376"));
}

TEST(AttentionPolicyTest, SelectorsHaveSettingsOfTheirOwn) {
  const AttentionPolicy policy = Make({.stages = {{.chunk = 128, .keep = 16384, .pool_rows = true},
                                                  {.chunk = 16, .keep = 4096, .every_key = true},
                                                  {.chunk = 8, .keep = 1024}},
                                       .last_probe = true,
                                       .dilation = 2,
                                       .rerank = 4,
                                       .sieve = 16,
                                       .all_heads = true});
  const SelectParams& hip = policy.classes[0].prefill.params;
  EXPECT_EQ(hip.num_stages, 3);
  EXPECT_EQ(hip.stages[0].chunk_tokens, 128);
  EXPECT_EQ(hip.stages[0].keep_chunks, 128);
  EXPECT_TRUE(hip.stages[0].pool_rows);
  EXPECT_FALSE(hip.stages[0].every_key);
  EXPECT_TRUE(hip.stages[1].every_key);
  EXPECT_EQ(hip.keep_blocks, 128);
  EXPECT_TRUE(hip.last_probe);
  EXPECT_TRUE(hip.all_heads);
  const SelectParams& scan = policy.classes[0].decode.params;
  EXPECT_EQ(scan.dilation, 2);
  EXPECT_EQ(scan.rerank, 4);
  EXPECT_EQ(scan.sieve, 16);
  EXPECT_TRUE(scan.all_heads);
  EXPECT_EQ(scan.keep_blocks, 256);
  EXPECT_EQ(SelectionCapacity(policy), 256);

  // A request's budget changes the last stage, and its selector brings its own settings.
  const auto changed = Override(policy, {.budget = 2048, .rerank = 1});
  ASSERT_TRUE(changed.ok());
  EXPECT_EQ(changed->classes[0].prefill.params.stages[2].keep_chunks, 256);
  EXPECT_EQ(changed->classes[0].decode.params.rerank, 1);
  const auto scanned = Override(policy, {.selector = SelectorName::kScan, .dilation = 0});
  ASSERT_TRUE(scanned.ok());
  EXPECT_EQ(scanned->classes[0].prefill.params.dilation, 0);
  EXPECT_EQ(scanned->classes[0].decode.params.rerank, 1);
  EXPECT_EQ(scanned->classes[0].decode.params.sieve, 8);
  EXPECT_FALSE(scanned->classes[0].decode.params.all_heads);
}

TEST(AttentionPolicyTest, RefusalsOfStagesNameTheNumbers) {
  const auto refusal = [](std::vector<StageSettings> stages) {
    return Refusal({.preset = "3k", .stages = std::move(stages)});
  };
  EXPECT_THAT(refusal(std::vector<StageSettings>(5)), HasSubstr("stages: 5 must be in [1, 4]"));
  EXPECT_THAT(refusal({{4, 64}}), HasSubstr("stages: 4 must be in [8, 65536]"));
  EXPECT_THAT(refusal({{24, 48}}), HasSubstr("chunks of 24 tokens, which is no power of two"));
  EXPECT_THAT(refusal({{64, 100}}), HasSubstr("stages: 100 must be in [64, 1048576] and a"));
  EXPECT_THAT(refusal({{64, 128}, {64, 128}}), HasSubstr("stages: 64:128 after 64:128"));
  EXPECT_THAT(refusal({{64, 128}, {8, 256}}), HasSubstr("stages: 8:256 after 64:128"));
  EXPECT_THAT(refusal({{64, 128}, {8, 64}}), HasSubstr("2 instead of 3 stages need a refresh"));
  EXPECT_EQ(Refusal({.preset = "3k", .refresh = {4, 2}, .stages = {{64, 128}, {8, 64}}}), "");
  EXPECT_THAT(Refusal({.selector = SelectorName::kScan, .stages = {{64, 128}, {8, 64}}}),
              HasSubstr("stages: neither prompts nor output use the selector hip"));
  EXPECT_THAT(Refusal({.preset = "3k", .dilation = 1}),
              HasSubstr("dilation: neither prompts nor output use the selector scan"));
  EXPECT_THAT(Refusal({.dilation = 65}), HasSubstr("dilation: 65 must be in [0, 64]"));
  EXPECT_THAT(Refusal({.sieve = 65}), HasSubstr("sieve: 65 must be in [1, 64]"));
  EXPECT_THAT(Refusal({.rerank = 0}), HasSubstr("rerank: 0 must be in [1, 64]"));
  const AttentionConfig layers = {.layers = {{{0}, {.selector = SelectorName::kHip, .rerank = 2}}}};
  EXPECT_THAT(std::string(MakePolicy(layers, 4, 4096).status().message()),
              HasSubstr("rerank: neither"));
  EXPECT_THAT(Refusal({.preset = "3k", .sieve = 2}), HasSubstr("sieve: neither"));
}

TEST(AttentionPolicyTest, DefaultsObeyThePositionLawAtAnyTrainedLength) {
  for (const int64_t trained : {256, 512, 1000, 2048, 4096, 5000, 8192, 131072}) {
    EXPECT_EQ(PositionWarning(Make({}, trained)), "") << trained;
    EXPECT_EQ(PositionWarning(Make({.preset = "default"}, trained)), "") << trained;
  }
}

TEST(AttentionPolicyTest, WarnsWhereKeysAreReadTooFarFromWherePrefillSawThem) {
  // Tokens within the trained length keep their places.
  EXPECT_THAT(PositionWarning(Make({.window = 1024})),
              HasSubstr("4095 + apparent distance 1088 of far keys pass 1.25 times the trained "
                        "length 4096"));
  EXPECT_THAT(PositionWarning(Make({.preset = "3k"})), HasSubstr("4095 + apparent distance 3328"));
  AttentionOverrides overrides = kSparse;
  EXPECT_EQ(PositionWarning(Make(overrides)), "");
  overrides.preset = "3k";  // 3328 + 64 and 3328: beyond 1.25 x 4096
  EXPECT_THAT(PositionWarning(Make(overrides)), HasSubstr("3392 + apparent distance 3328"));
  EXPECT_EQ(PositionWarning(Make(overrides, 8192)), "");
}

TEST(AttentionPolicyTest, ShortModelsGetShortWindows) {
  EXPECT_EQ(Make({}, 512).classes[0].window, 64);
  EXPECT_EQ(Make({}, 4096).classes[0].window, 960);
  EXPECT_EQ(Make({}, 8192).classes[0].window, 1024);
  EXPECT_EQ(Make({}, 500).classes[0].mode, AttentionMode::kDense);
}

}  // namespace
}  // namespace everlong
