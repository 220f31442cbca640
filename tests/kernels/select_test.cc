// Select, against the definitions of its selectors.
#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/select_oracle.h"

namespace everlong {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kLayer = 1;
constexpr int32_t kSinks = 16;
constexpr int32_t kWindow = 72;

struct Case {
  std::string name;
  SelectParams params;
  int32_t bits = 4;
  int32_t head_dim = 32;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

std::vector<Case> ScanCases() {
  return {{"Scan", {.keep_blocks = 10, .distance = 136}},
          {"ScanOf2Bits", {.keep_blocks = 10, .distance = 136}, 2},
          {"ScanOf1Bit", {.keep_blocks = 10, .distance = 136}, 1},
          {"ScanDilated", {.keep_blocks = 9, .distance = 136, .dilation = 1}},
          {"ScanReranked", {.keep_blocks = 5, .distance = 136, .rerank = 4}, 1},
          {"ScanRerankedDilatedOverHeads",
           {.all_heads = true, .keep_blocks = 8, .distance = 136, .dilation = 2, .rerank = 2},
           2}};
}

std::vector<Case> HipCases() {
  const HipStage coarse = {.chunk_tokens = 64, .keep_chunks = 7, .pool_rows = true};
  const HipStage middle = {.chunk_tokens = 32, .keep_chunks = 8, .pool_rows = true};
  const HipStage fine = {.chunk_tokens = 8, .keep_chunks = 9};
  const SelectParams hip = {.selector = Selector::kHip,
                            .keep_blocks = 9,
                            .distance = kWindow,
                            .num_stages = 3,
                            .stages = {coarse, middle, fine}};
  SelectParams by_chunk = hip;
  by_chunk.probes = ProbePositions::kChunk;
  SelectParams unrotated = hip;
  unrotated.probes = ProbePositions::kNone;
  unrotated.last_probe = true;
  unrotated.all_heads = true;
  SelectParams every_key = hip;
  every_key.stages[1].every_key = true;
  every_key.stages[2].every_key = true;
  SelectParams one_stage = hip;
  one_stage.num_stages = 1;
  one_stage.stages[0] = fine;
  SelectParams wide = hip;
  wide.num_stages = 2;
  wide.keep_blocks = 12;
  wide.stages[0] = {.chunk_tokens = 256, .keep_chunks = 2};
  wide.stages[1] = {.chunk_tokens = 16, .keep_chunks = 6};
  return {{"Hip", hip},
          {"HipByChunk", by_chunk},
          {"HipUnrotatedLastProbeOverHeads", unrotated},
          {"HipEveryKey", every_key},
          {"HipInOneStage", one_stage},
          {"HipWithWideChunks", wide},
          {"HipOf64Dimensions", by_chunk, 4, 64},
          {"HipOf128Dimensions", hip, 4, 128},
          {"HipByChunkOf128Dimensions", by_chunk, 4, 128}};
}

// Query blocks of up to 64 rows with sinks, window and a slot each.
Step SelectingStep(std::mt19937& random) {
  Step step(random, {{700, 1}, {1030, 1}, {450, 70}, {40, 3}, {300, 1}, {515, 6}});
  step.blocks.clear();
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    for (int32_t row = step.query_begin[s]; row < step.query_begin[s + 1];) {
      const int64_t position = step.position(s, row);
      const auto rows = static_cast<int32_t>(
          std::min<int64_t>(64 - position % 64, step.query_begin[s + 1] - row));
      step.blocks.push_back(
          {.sequence = s,
           .first_row = row,
           .num_rows = rows,
           .num_sinks = kSinks,
           .window_begin = std::max<int64_t>((position - kWindow) / 8 * 8, kSinks),
           .select = 0});
      row += rows;
    }
  }
  // The last block has no slot: nothing is selected for it.
  const auto count = static_cast<int32_t>(step.blocks.size());
  for (int32_t i = 0; i + 1 < count; ++i) step.blocks[i].slot = (i + 2) % count;
  return step;
}

// The index of all complete pages, as the reference makes it.
HostIndex IndexOf(const Step& step, const HostCache& cache, int32_t bits) {
  Device reference(MakeReferenceKernels());
  Step all = step;
  all.query_begin = {0};
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    all.context_begin[s] = 0;
    all.query_begin.push_back(all.query_begin.back() + static_cast<int32_t>(step.length(s)));
  }
  all.tokens.resize(all.query_begin.back());
  HostIndex index(bits, cache.shape.kv_heads, cache.shape.head_dim, step.num_pages(), kLayers);
  IndexKeysArgs args = {.cache = cache.shape, .index = index.shape, .layer = kLayer};
  args.cache.base = reference.Place(cache.bytes);
  args.index.base = reference.Place(index.bytes);
  reference->BeginStep(all.Layout());
  reference->IndexKeys(args);
  index.bytes = reference.Read(args.index.base, static_cast<int64_t>(index.bytes.size()));
  return index;
}

// What keys and queries are drawn from. Of integers, every score is an integer below 2^24 or a part
// of one, so f32 is exact in any order and ties are many.
//   kIntegers      nothing rotates; a row's largest element is 127, so that rounding it to 127ths
//   of
//                  that changes nothing
//   kQuarterTurns  distances turn queries by quarters, to what 16 bits hold
//   kNormal        any values and turns
enum class Drawing { kIntegers, kQuarterTurns, kNormal };

// Of 16 pairs of dimensions, however many there are: quarters of a float are not exact.
const float* QuarterTurns(int32_t head_dim) {
  static std::map<int32_t, std::vector<float>> known;
  std::vector<float>& inv_freq = known[head_dim];
  inv_freq.resize(head_dim / 2);
  const int32_t apart = head_dim / 32;
  for (int32_t i = 0; i < head_dim / 2; i += apart) {
    inv_freq[i] = static_cast<float>(static_cast<double>(i / apart % 4) * std::acos(0.0));
  }
  return inv_freq.data();
}

// Means of four neighbouring rows are of few bits: 127 stands in even dimensions of even rows and
// in odd ones of odd rows.
Values DrawQueries(Drawing drawing, const Step& step, int32_t heads, int32_t head_dim, DType type,
                   std::mt19937& random) {
  const int64_t row_width = int64_t{heads} * head_dim;
  Values q = RandomValues(random, step.num_tokens() * row_width, type);
  if (drawing == Drawing::kQuarterTurns) {
    for (float& v : q) v = static_cast<float>(random() % 4 * 2 + 1);
  } else if (drawing == Drawing::kIntegers) {
    for (float& v : q) v = static_cast<float>(static_cast<int32_t>(random() % 5) - 2) * 4;
    for (size_t head = 0; head < q.size(); head += head_dim) {
      q[head + random() % 16 * 2 + head / row_width % 2] = 127.0f;
    }
  }
  return q;
}

SelectProblem MakeProblem(const Case& c, const KvFamily& kv, Drawing drawing, uint32_t seed) {
  std::mt19937 random(seed);
  const AttentionShape shape = {
      .q_heads = 6, .kv_heads = 2, .head_dim = c.head_dim, .rotate = drawing != Drawing::kIntegers};
  Step step = SelectingStep(random);
  HostCache cache(kv.kv_type, shape.kv_heads, shape.head_dim, step.num_pages(), kLayers);
  if (drawing == Drawing::kNormal) {
    FillCache(cache, step, kLayer, random);
  } else {
    for (int32_t page = 0; page < step.num_pages(); ++page) {
      FillPageOnLevels(cache, kLayer, page, c.bits, random);
    }
  }
  const DType type = kv.family.activation_type();
  Values q = DrawQueries(drawing, step, shape.q_heads, shape.head_dim, type, random);
  HostSelection selection(kLayers, static_cast<int32_t>(step.blocks.size()), shape.kv_heads, 40);
  for (std::vector<int32_t>& list : selection.lists) list.assign(3, 7);
  HostIndex index = IndexOf(step, cache, c.bits);
  return {.shape = shape,
          .step = std::move(step),
          .cache = std::move(cache),
          .index = std::move(index),
          .selection = std::move(selection),
          .q = std::move(q),
          .activation_type = type,
          .inv_freq = drawing == Drawing::kQuarterTurns ? QuarterTurns(c.head_dim)
                                                        : InverseFrequencies(c.head_dim, 1.0),
          .quarter_turns = drawing == Drawing::kQuarterTurns,
          .selects = {c.params},
          .layer = kLayer};
}

// What is to be chosen is found once for all backends of a family.
using Parameters = std::tuple<KvFamily, Case>;

std::string ParametersName(const ::testing::TestParamInfo<Parameters>& info) {
  return std::get<0>(info.param).name() + std::get<1>(info.param).name;
}

auto Over(const std::vector<Case>& cases,
          const std::vector<DType>& kv_types = {DType::kF32, DType::kBF16, DType::kF8}) {
  std::vector<KvFamily> families = KvFamilies(ByteProductBackends());
  std::erase_if(families, [&](const KvFamily& kv) {
    return std::find(kv_types.begin(), kv_types.end(), kv.kv_type) == kv_types.end();
  });
  return ::testing::Combine(::testing::ValuesIn(families), ::testing::ValuesIn(cases));
}

class SelectTest : public ::testing::TestWithParam<Parameters> {
 protected:
  static SelectProblem Problem(Drawing drawing, uint32_t seed) {
    return MakeProblem(std::get<Case>(GetParam()), std::get<KvFamily>(GetParam()), drawing, seed);
  }

  // Calls check(what the backend leaves in the lists) for every backend, with the sequences of one
  // token as prompts and as decoded.
  template <class Check>
  static void ForEachBackend(SelectProblem problem, const Check& check) {
    std::vector<Backend> backends = std::get<KvFamily>(GetParam()).family.members;
    if (problem.activation_type == DType::kF32) {
      backends.push_back({"reference", [] { return std::shared_ptr(MakeReferenceKernels()); }});
    }
    for (const Backend& backend : backends) {
      Device device(backend);
      for (const int32_t num_decode : {0, problem.step.num_decodable()}) {
        SCOPED_TRACE(backend.name + ", " + std::to_string(num_decode) + " decoded");
        problem.step.num_decode = num_decode;
        check(problem.Run(device));
      }
    }
  }

  static void ExpectSelects(const SelectProblem& problem, const HostSelection& expected) {
    ForEachBackend(problem, [&](const HostSelection& s) { EXPECT_EQ(s.lists, expected.lists); });
  }
};
INSTANTIATE_TEST_SUITE_P(Scan, SelectTest, Over(ScanCases()), ParametersName);
INSTANTIATE_TEST_SUITE_P(Hip, SelectTest, Over(HipCases()), ParametersName);

TEST_P(SelectTest, ChoosesExactlyAmongIntegers) {
  const SelectProblem problem = Problem(Drawing::kIntegers, 1);
  ExpectSelects(problem, problem.Expected().selection);
}

TEST_P(SelectTest, LaterStagesStartFromKeptLists) {
  SelectProblem problem = Problem(Drawing::kIntegers, 2);
  problem.selection = problem.Expected().selection;
  problem.q = Problem(Drawing::kIntegers, 3).q;
  const SelectParams& params = problem.selects[0];
  const int32_t num_stages = params.selector == Selector::kScan ? 1 : params.num_stages;
  for (int32_t first_stage = 1; first_stage <= num_stages; ++first_stage) {
    for (QueryBlock& block : problem.step.blocks) block.first_stage = first_stage;
    SCOPED_TRACE(first_stage);
    ExpectSelects(problem, problem.Expected().selection);
  }
}

class ProbingTest : public SelectTest {};
INSTANTIATE_TEST_SUITE_P(Hip, ProbingTest, Over(HipCases()), ParametersName);

// With f32 the first drawing whose choices are clear, that is, wider apart than two scores may be
// off. None is where queries are rounded to 16 bits, unless these hold them.
TEST_P(ProbingTest, ChoosesWhatItsDefinitionDoes) {
  if (std::get<KvFamily>(GetParam()).family.activation_type() != DType::kF32) {
    const SelectProblem problem = Problem(Drawing::kQuarterTurns, 1);
    return ExpectSelects(problem, problem.Expected().selection);
  }
  for (uint32_t seed = 1;; ++seed) {
    ASSERT_LT(seed, 50u) << "no drawing is clear";
    const SelectProblem problem = Problem(Drawing::kNormal, seed);
    const SelectProblem::Outcome expected = problem.Expected();
    if (expected.least_gap <= 2 * problem.ScoreError()) continue;
    return ExpectSelects(problem, expected.selection);
  }
}

class ScanTest : public SelectTest {};
INSTANTIATE_TEST_SUITE_P(Scan, ScanTest, Over(ScanCases(), {DType::kBF16, DType::kF8}),
                         ParametersName);

// `chosen` are the right number of candidates, ascending, and none of them is surely worse than one
// that is left out.
void ExpectPossibleChoice(const std::vector<int32_t>& chosen, int32_t first_block, size_t keep,
                          const std::vector<SelectProblem::Range>& scores) {
  ASSERT_EQ(chosen.size(), std::min(keep, scores.size()));
  std::vector<bool> taken(scores.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    ASSERT_TRUE(i == 0 || chosen[i - 1] < chosen[i]);
    taken.at(chosen[i] - first_block) = true;
  }
  double worst_taken = INFINITY;
  double best_left = -INFINITY;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (taken[i]) worst_taken = std::min(worst_taken, scores[i].most);
    if (!taken[i]) best_left = std::max(best_left, scores[i].least);
  }
  EXPECT_GE(worst_taken, best_left);
}

// Of the `keep` best, how many are so whatever the errors.
size_t SurelyChosen(const std::vector<SelectProblem::Range>& scores, size_t keep) {
  size_t sure = 0;
  for (const SelectProblem::Range& score : scores) {
    const auto rivals =
        std::count_if(scores.begin(), scores.end(),
                      [&](const SelectProblem::Range& other) { return other.most >= score.least; });
    if (static_cast<size_t>(rivals) <= keep) ++sure;
  }
  return sure;
}

TEST_P(ScanTest, ChoosesTheBestWithinItsError) {
  const SelectProblem problem = Problem(Drawing::kNormal, 1);
  const auto keep = static_cast<size_t>(problem.selects[0].keep_blocks);
  struct Choice {
    int32_t slot;
    int32_t head;
    std::vector<SelectProblem::Range> scores;
  };
  std::vector<Choice> choices;
  size_t sure = 0;
  size_t chosen = 0;
  for (const QueryBlock& block : problem.step.blocks) {
    for (int32_t head = 0; block.slot >= 0 && head < problem.shape.kv_heads; ++head) {
      choices.push_back({block.slot, head, problem.ScanScores(block, head)});
      sure += SurelyChosen(choices.back().scores, keep);
      chosen += std::min(keep, choices.back().scores.size());
    }
  }
  EXPECT_GT(sure, 0u);
  // With 16 bits of activation they do: there the integers of SelectTest decide.
  if (problem.activation_type == DType::kF32) {
    EXPECT_GT(2 * sure, chosen) << "the errors leave most choices open";
  }
  ForEachBackend(problem, [&](const HostSelection& after) {
    for (const Choice& choice : choices) {
      ExpectPossibleChoice(after.List(kLayer, choice.slot, choice.head, kFinalList), kSinks / 8,
                           keep, choice.scores);
    }
  });
}

}  // namespace
}  // namespace everlong
