// Select, against the definitions of its selectors.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/select_cases.h"

namespace everlong {
namespace {

// What is to be chosen is found once for all backends of a family.
using Parameters = std::tuple<KvFamily, SelectCase>;

std::string ParametersName(const ::testing::TestParamInfo<Parameters>& info) {
  return std::get<0>(info.param).name() + std::get<1>(info.param).name;
}

std::vector<KvFamily> FamiliesWith(const std::vector<DType>& kv_types) {
  std::vector<KvFamily> families = KvFamilies(ByteProductBackends());
  std::erase_if(families, [&](const KvFamily& kv) {
    return std::find(kv_types.begin(), kv_types.end(), kv.kv_type) == kv_types.end();
  });
  return families;
}

auto Over(const std::vector<SelectCase>& cases,
          const std::vector<DType>& kv_types = {DType::kF32, DType::kBF16, DType::kF8}) {
  return ::testing::Combine(::testing::ValuesIn(FamiliesWith(kv_types)),
                            ::testing::ValuesIn(cases));
}

// Calls check(what the backend leaves in the lists) for every backend, with the sequences of one
// token as prompts and as decoded.
template <class Check>
void ForEachBackend(const KvFamily& kv, SelectProblem problem, const Check& check) {
  std::vector<Backend> backends = kv.family.members;
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

class SelectTest : public ::testing::TestWithParam<Parameters> {
 protected:
  static SelectProblem Problem(Drawing drawing, uint32_t seed) {
    return MakeSelectProblem(std::get<SelectCase>(GetParam()), std::get<KvFamily>(GetParam()),
                             drawing, seed);
  }

  static void ExpectSelects(const SelectProblem& problem, const HostSelection& expected) {
    ForEachBackend(std::get<KvFamily>(GetParam()), problem,
                   [&](const HostSelection& s) { EXPECT_EQ(s.lists, expected.lists); });
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

// Forks of one context share its pages; what a fork's own pages would hold, nothing reads.
TEST_P(SelectTest, SharedPagesAreAsPagesApart) {
  SelectProblem apart = Problem(Drawing::kIntegers, 4);
  const Step& step = apart.step;
  SelectProblem shared = apart;
  for (const int32_t s : {1, 2, 5}) {
    for (int64_t i = 0; i < 6; ++i) {
      const int32_t first = step.pages[i];
      const int32_t own = step.pages[step.page_begin[s] + i];
      apart.cache.CopyPage(apart.cache, kSelectLayer, first, own);
      apart.index.CopyPage(kSelectLayer, first, own);
      shared.step.pages[step.page_begin[s] + i] = first;
      shared.cache.ForgetPage(kSelectLayer, own);
      shared.index.ForgetPage(kSelectLayer, own);
    }
  }
  ExpectSelects(shared, apart.Expected().selection);
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

std::vector<KvFamily> RoundingFamilies() {
  std::vector<KvFamily> families = FamiliesWith({DType::kBF16, DType::kF8});
  std::erase_if(families,
                [](const KvFamily& kv) { return kv.family.activation_type() == DType::kF32; });
  return families;
}

std::vector<SelectCase> ScanCasesOfIndexedKeys() {
  std::vector<SelectCase> cases = ScanCases();
  std::erase_if(cases, [](const SelectCase& c) { return c.params.rerank > 1; });
  return cases;
}

class ScanTest : public SelectTest {};
INSTANTIATE_TEST_SUITE_P(Scan, ScanTest, Over(ScanCases(), {DType::kBF16, DType::kF8}),
                         ParametersName);

// Where rows are rounded to 127ths, which hides what turns are off by; stored keys would see that
// and part what is equal.
class TurnedScanTest : public SelectTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TurnedScanTest);
INSTANTIATE_TEST_SUITE_P(Scan, TurnedScanTest,
                         ::testing::Combine(::testing::ValuesIn(RoundingFamilies()),
                                            ::testing::ValuesIn(ScanCasesOfIndexedKeys())),
                         ParametersName);

TEST_P(TurnedScanTest, ChoosesExactlyWhereDistancesTurnByQuarters) {
  const SelectProblem problem = Problem(Drawing::kQuarterTurns, 1);
  ExpectSelects(problem, problem.Expected().selection);
}

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

struct ScanChoice {
  int32_t slot;
  int32_t head;
  std::vector<SelectProblem::Range> scores;
};

std::vector<ScanChoice> ScanChoices(const SelectProblem& problem) {
  std::vector<ScanChoice> choices;
  for (const QueryBlock& block : problem.step.blocks) {
    for (int32_t head = 0; block.slot >= 0 && head < problem.shape.kv_heads; ++head) {
      choices.push_back({block.slot, head, problem.ScanScores(block, head)});
    }
  }
  return choices;
}

// Whether the errors leave less than half open. With 16 bits of activation they leave most so, and
// the integers of SelectTest decide.
bool AreClear(const std::vector<ScanChoice>& choices, size_t keep, DType activation_type) {
  size_t sure = 0;
  size_t chosen = 0;
  for (const ScanChoice& choice : choices) {
    sure += SurelyChosen(choice.scores, keep);
    chosen += std::min(keep, choice.scores.size());
  }
  return activation_type == DType::kF32 ? 2 * sure > chosen : sure > 0;
}

TEST_P(ScanTest, ChoosesTheBestWithinItsError) {
  for (uint32_t seed = 1;; ++seed) {
    ASSERT_LT(seed, 10u) << "no drawing is clear";
    const SelectProblem problem = Problem(Drawing::kNormal, seed);
    const auto keep = static_cast<size_t>(problem.selects[0].keep_blocks);
    const std::vector<ScanChoice> choices = ScanChoices(problem);
    if (!AreClear(choices, keep, problem.activation_type)) continue;
    return ForEachBackend(std::get<KvFamily>(GetParam()), problem, [&](const HostSelection& after) {
      for (const ScanChoice& choice : choices) {
        ExpectPossibleChoice(after.List(kSelectLayer, choice.slot, choice.head, kFinalList),
                             kSelectSinks / 8, keep, choice.scores);
      }
    });
  }
}

TEST(SieveTest, LeavesTwoPagesForEachBlockOrAll) {
  const auto sieve = [](const SelectParams& params, int64_t num_pages) {
    const auto [num_groups, keep] = SieveOf(params, num_pages);
    return std::pair(num_groups, keep);
  };
  const std::pair<int32_t, int32_t> all = {0, 0};
  EXPECT_EQ(sieve({.keep_blocks = 256, .sieve = 8}, 16384), std::pair(128, 16));
  EXPECT_EQ(sieve({.keep_blocks = 256, .sieve = 8}, 16385), std::pair(129, 16));
  EXPECT_EQ(sieve({.keep_blocks = 256, .sieve = 8}, 2048), std::pair(16, 32));
  EXPECT_EQ(sieve({.keep_blocks = 256, .sieve = 8}, 1024), std::pair(8, 64));
  EXPECT_EQ(sieve({.keep_blocks = 256, .sieve = 8}, 1023), all);
  EXPECT_EQ(sieve({.keep_blocks = 256, .rerank = 4, .sieve = 8}, 4095), all);
  EXPECT_EQ(sieve({.keep_blocks = 256, .rerank = 4, .sieve = 8}, 4096), std::pair(32, 64));
  EXPECT_EQ(sieve({.keep_blocks = 2, .sieve = 1}, 1000), all);
  EXPECT_EQ(sieve({.keep_blocks = 2, .sieve = 2}, 100), std::pair(1, 50));
}

// Contexts of more candidates than one CTA chooses among, and more sequences than one launch takes.
struct Extent {
  std::string name;
  std::vector<SequenceShape> sequences;
};

void PrintTo(const Extent& extent, std::ostream* out) {
  *out << extent.name;
}

std::vector<Extent> Extents() {
  Extent wide = {"Wide", {}};
  for (int64_t i = 0; i < 72; ++i) wide.sequences.push_back({200 + i * i * 7 % 900, 1});
  for (int64_t i = 0; i < 6; ++i) wide.sequences.push_back({i * 90, 1 + i * i});
  return {{"Long", {{70003, 1}, {1500, 1}, {66000, 6}, {100, 1}}}, wide};
}

std::vector<SelectCase> LargeCases() {
  const HipStage coarse = {.chunk_tokens = 256, .keep_chunks = 60, .pool_rows = true};
  const HipStage fine = {.chunk_tokens = 8, .keep_chunks = 300};
  return {{"Scan", {.keep_blocks = 300, .distance = 136, .dilation = 1}},
          {"ScanReranked", {.keep_blocks = 100, .distance = 136, .rerank = 4}, 2},
          {"ScanSieved", {.keep_blocks = 100, .distance = 136, .dilation = 1, .sieve = 8}},
          {"Hip",
           {.selector = Selector::kHip,
            .keep_blocks = 300,
            .distance = 72,
            .num_stages = 2,
            .stages = {coarse, fine}}}};
}

using LargeParameters = std::tuple<KvFamily, SelectCase, Extent>;

std::string LargeName(const ::testing::TestParamInfo<LargeParameters>& info) {
  const auto& [kv, c, extent] = info.param;
  return kv.name() + c.name + extent.name;
}

class LargeSelectTest : public ::testing::TestWithParam<LargeParameters> {};
INSTANTIATE_TEST_SUITE_P(
    Backends, LargeSelectTest,
    ::testing::Combine(::testing::ValuesIn(FamiliesWith({DType::kBF16, DType::kF8})),
                       ::testing::ValuesIn(LargeCases()), ::testing::ValuesIn(Extents())),
    LargeName);

TEST_P(LargeSelectTest, ChoosesExactlyAmongIntegers) {
  auto [kv, c, extent] = GetParam();
  c.sequences = extent.sequences;
  const SelectProblem problem = MakeSelectProblem(c, kv, Drawing::kIntegers, 1, 300);
  const HostSelection expected = problem.Expected().selection;
  ForEachBackend(kv, problem,
                 [&](const HostSelection& s) { EXPECT_TRUE(s.lists == expected.lists); });
}

}  // namespace
}  // namespace everlong
