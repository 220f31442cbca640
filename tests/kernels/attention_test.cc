// Attention of ragged batches, dense and sparse, over a paged cache.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/attention_problem.h"

namespace everlong {
namespace {

const std::vector<AttentionShape>& Shapes() {
  static const std::vector<AttentionShape> shapes = {
      {.q_heads = 1, .kv_heads = 1, .head_dim = 8},
      {.q_heads = 4, .kv_heads = 4, .head_dim = 16},
      {.q_heads = 4, .kv_heads = 2, .head_dim = 32, .rotate = false},
      {.q_heads = 9, .kv_heads = 3, .head_dim = 64},
      {.q_heads = 4, .kv_heads = 1, .head_dim = 80, .frequency = 1000.0},
      {.q_heads = 6, .kv_heads = 2, .head_dim = 96, .rope_scale = 1.25f},
      {.q_heads = 8, .kv_heads = 1, .head_dim = 128},
      {.q_heads = 8, .kv_heads = 2, .head_dim = 128, .rope_scale = 1.25f},
      {.q_heads = 5, .kv_heads = 5, .head_dim = 24, .frequency = 5000.0}};
  return shapes;
}

// Ways to draw a problem.
struct Drawing {
  std::string name;
  AttentionProblem (*draw)(const AttentionShape& shape, DType kv_type, DType activation_type);
};

void PrintTo(const Drawing& drawing, std::ostream* out) {
  *out << drawing.name;
}

AttentionProblem Dense(const AttentionShape& shape, DType kv_type, DType activation_type) {
  return AttentionProblem::Dense(shape, kv_type, activation_type);
}
AttentionProblem Sparse(const AttentionShape& shape, DType kv_type, DType activation_type) {
  return AttentionProblem::Sparse(shape, kv_type, activation_type);
}

// `Sequences` that read everything, or random selections, or sinks and a window.
template <const std::vector<SequenceShape>& (*Sequences)()>
AttentionProblem DenseOf(const AttentionShape& shape, DType kv_type, DType activation_type) {
  return AttentionProblem::Dense(shape, kv_type, activation_type, Sequences());
}
template <const std::vector<SequenceShape>& (*Sequences)()>
AttentionProblem SparseOf(const AttentionShape& shape, DType kv_type, DType activation_type) {
  return AttentionProblem::Sparse(shape, kv_type, activation_type, Sequences());
}
template <const std::vector<SequenceShape>& (*Sequences)()>
AttentionProblem WindowOf(const AttentionShape& shape, DType kv_type, DType activation_type) {
  AttentionProblem problem = DenseOf<Sequences>(shape, kv_type, activation_type);
  for (QueryBlock& block : problem.step.blocks) {
    const int64_t first = problem.step.position(block.sequence, block.first_row);
    block.num_sinks = static_cast<int32_t>(std::min<int64_t>(first / 8 * 8, 64));
    block.window_begin = std::max<int64_t>(first / 8 * 8 - 4096, block.num_sinks);
    block.positions = Positions::kStreaming;
  }
  return problem;
}

// Sequences that are decoded together, one of them in parts where a backend has many processors.
const std::vector<SequenceShape>& Together() {
  static const std::vector<SequenceShape> shapes = {{6000, 1}, {9, 1}, {1023, 1}};
  return shapes;
}

const std::vector<SequenceShape>& Long() {
  static const std::vector<SequenceShape> shapes = {{70001, 1}, {131, 1}, {70400, 9}};
  return shapes;
}

const std::vector<SequenceShape>& Wide() {
  static const std::vector<SequenceShape> shapes = [] {
    std::vector<SequenceShape> made;
    for (int64_t i = 0; i < 72; ++i) made.push_back({i * i * 7 % 1500, 1});
    for (int64_t i = 0; i < 8; ++i) made.push_back({i * 97, 1 + i * i});
    return made;
  }();
  return shapes;
}

const std::vector<Drawing>& Drawings() {
  static const std::vector<Drawing> drawings = {{"Dense", Dense},
                                                {"Sparse", Sparse},
                                                {"DenseTogether", DenseOf<Together>},
                                                {"SparseTogether", SparseOf<Together>}};
  return drawings;
}

const std::vector<Drawing>& LargeDrawings() {
  static const std::vector<Drawing> drawings = {
      {"LongDense", DenseOf<Long>}, {"LongSparse", SparseOf<Long>}, {"LongWindow", WindowOf<Long>},
      {"WideDense", DenseOf<Wide>}, {"WideSparse", SparseOf<Wide>}, {"WideWindow", WindowOf<Wide>}};
  return drawings;
}

// Calls check() with the sequences of one token as prompts and as decoded.
template <class Check>
void AsPromptsAndDecoded(AttentionProblem& problem, const Check& check) {
  for (const int32_t num_decode : {0, problem.step.num_decodable()}) {
    SCOPED_TRACE(std::to_string(num_decode) + " decoded");
    problem.step.num_decode = num_decode;
    check();
  }
}

using Parameters = std::tuple<KvFamily, AttentionShape, Drawing>;

std::string ParametersName(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [kv, shape, drawing] = info.param;
  return kv.name() + ShapeName(shape) + drawing.name;
}

class AttentionTest : public ::testing::TestWithParam<Parameters> {
 protected:
  static DType activation_type() { return std::get<KvFamily>(GetParam()).family.activation_type(); }
  static AttentionProblem Problem() {
    const auto& [kv, shape, drawing] = GetParam();
    return drawing.draw(shape, kv.kv_type, activation_type());
  }

  // What the reference takes long for is done once for all members of a family.
  static void ExpectEveryBackendWithin(AttentionProblem& problem, const Values& expected,
                                       const std::vector<double>& bound, const Values& expected_lse,
                                       const std::vector<double>& lse_bound) {
    for (const Backend& backend : std::get<KvFamily>(GetParam()).family.members) {
      SCOPED_TRACE(backend.name);
      Device device(backend);
      AsPromptsAndDecoded(problem, [&] {
        Values lse;
        ExpectWithin(problem.Run(device, &lse), expected, bound);
        ExpectWithin(lse, expected_lse, lse_bound);
      });
    }
  }
};
INSTANTIATE_TEST_SUITE_P(
    Backends, AttentionTest,
    ::testing::Combine(::testing::ValuesIn(KvFamilies(BackendsBesideReference())),
                       ::testing::ValuesIn(Shapes()), ::testing::ValuesIn(Drawings())),
    ParametersName);

std::vector<KvFamily> NarrowKvFamilies() {
  std::vector<KvFamily> families = KvFamilies(BackendsBesideReference());
  std::erase_if(families, [](const KvFamily& kv) {
    return kv.kv_type != DType::kBF16 && kv.kv_type != DType::kF8;
  });
  return families;
}
INSTANTIATE_TEST_SUITE_P(Large, AttentionTest,
                         ::testing::Combine(::testing::ValuesIn(NarrowKvFamilies()),
                                            ::testing::Values(AttentionShape{
                                                .q_heads = 4, .kv_heads = 1, .head_dim = 64}),
                                            ::testing::ValuesIn(LargeDrawings())),
                         ParametersName);

TEST_P(AttentionTest, AgreesWithReference) {
  Device reference(MakeReferenceKernels());
  AttentionProblem problem = Problem();
  Values lse;
  const Values expected = problem.Run(reference, &lse);
  ExpectEveryBackendWithin(problem, expected, problem.Bound(activation_type()), lse,
                           problem.LseBound(activation_type()));
}

// Queries of zeros weigh all keys alike, and values are 448, exact in every type, in one dimension:
// sums count the keys that have it there, exactly in any order, so that none can be lost or read
// twice.
TEST_P(AttentionTest, CountsEveryKeyOnce) {
  AttentionProblem problem = Problem();
  problem.q.assign(problem.q.size(), 0.0f);
  problem.MarkValues(448.0f);
  const Values expected = problem.NaiveResult();
  const Values lse = problem.NaiveLse();
  std::vector<double> bound;
  for (const float value : expected) {
    bound.push_back(Gamma(4) * value + RoundingError(activation_type(), (1 + Gamma(4)) * value));
  }
  std::vector<double> lse_bound;
  for (const float value : lse) lse_bound.push_back(Gamma(kExpRoundings + 2) * value);
  ExpectEveryBackendWithin(problem, expected, bound, lse, lse_bound);
}

class AttentionShapeTest : public ::testing::TestWithParam<AttentionShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapeTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return ShapeName(info.param); });

// The reference sums in double: the bound of f32 shrinks by 2^29, and that of two roundings to f32
// remains.
TEST_P(AttentionShapeTest, ReferenceAgreesWithNaiveDefinition) {
  Device reference(MakeReferenceKernels());
  for (const Drawing& drawing : Drawings()) {
    const AttentionProblem problem = drawing.draw(GetParam(), DType::kF16, DType::kF32);
    const Values naive = problem.NaiveResult();
    std::vector<double> bound = problem.Bound(DType::kF32);
    for (size_t i = 0; i < bound.size(); ++i) {
      bound[i] = bound[i] * 0x1p-29 + 2 * RoundingError(DType::kF32, naive[i]);
    }
    ExpectWithin(problem.Run(reference), naive, bound);

    const Values lse = problem.NaiveLse();
    std::vector<double> lse_bound = problem.LseBound(DType::kF32);
    for (size_t i = 0; i < lse_bound.size(); ++i) {
      lse_bound[i] = lse_bound[i] * 0x1p-29 + 2 * RoundingError(DType::kF32, lse[i]);
    }
    ExpectWithin(problem.RunLse(reference), lse, lse_bound);
  }
}

// Some value of each row differs by more than twice its bound.
void ExpectRowsDiffer(const Values& a, const Values& b, const std::vector<double>& bound,
                      int32_t num_rows) {
  const size_t width = a.size() / num_rows;
  for (int32_t row = 0; row < num_rows; ++row) {
    double ratio = 0.0;
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      ratio = std::max(ratio, std::abs(double{a[i]} - b[i]) / bound[i]);
    }
    EXPECT_GT(ratio, 2.0) << "row " << row;
  }
}

// A bound is of use if it is below what a mistake changes: here, for every query that sees it, the
// loss of one key among many.
TEST_P(AttentionShapeTest, BoundNoticesAMissingKey) {
  constexpr int64_t kMissing = 66;
  const auto problem = AttentionProblem::Dense(GetParam(), DType::kF32, DType::kF32, {{140, 7}});
  const Values complete = problem.NaiveResult();
  const Values incomplete = problem.NaiveResult(kMissing);
  ExpectRowsDiffer(complete, incomplete, problem.Bound(DType::kF32), problem.step.num_tokens());
  ExpectRowsDiffer(problem.NaiveLse(), problem.NaiveLse(kMissing), problem.LseBound(DType::kF32),
                   problem.step.num_tokens());
}

class AttentionInvarianceTest : public ::testing::TestWithParam<KvBackend> {};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionInvarianceTest,
                         ::testing::ValuesIn(KvBackends(Backends())),
                         [](const auto& info) { return info.param.name(); });

using ChunkParameters = std::tuple<KvBackend, Drawing, int32_t>;

std::string ChunkName(const ::testing::TestParamInfo<ChunkParameters>& info) {
  const auto& [kv, drawing, chunk] = info.param;
  return kv.name() + drawing.name + "By" + std::to_string(chunk);
}

class AttentionChunkTest : public ::testing::TestWithParam<ChunkParameters> {};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionChunkTest,
                         ::testing::Combine(::testing::ValuesIn(KvBackends(Backends())),
                                            ::testing::ValuesIn(Drawings()),
                                            ::testing::Values(1, 3, 8, 64)),
                         ChunkName);

TEST_P(AttentionChunkTest, QueryIsTheSameInAnyBatchAndChunk) {
  const auto& [kv, drawing, chunk] = GetParam();
  Device device(kv.backend);
  const AttentionShape shape = {.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  AttentionProblem problem = drawing.draw(shape, kv.kv_type, device.activation_type());
  AsPromptsAndDecoded(problem, [&, chunk = chunk] {
    const Values whole = problem.Run(device);
    const AttentionArgs placed = problem.Place(device);
    Values parts;
    for (const QueryBlock& block : problem.step.blocks) {
      for (int32_t first = 0; first < block.num_rows; first += chunk) {
        const Step part = problem.step.Slice(block, first, std::min(chunk, block.num_rows - first));
        const Values out = problem.Run(device, placed, part, block.first_row + first);
        parts.insert(parts.end(), out.begin(), out.end());
      }
    }
    ExpectSameBits(parts, whole);
    device.FreePlaced();
  });
}

TEST(AttentionThreadsTest, ThreadsDoNotChangeAttention) {
  const AttentionShape shape = {.q_heads = 9, .kv_heads = 3, .head_dim = 64};
  std::vector<AttentionProblem> problems;
  for (const Drawing& drawing : Drawings()) {
    problems.push_back(drawing.draw(shape, DType::kBF16, DType::kF32));
  }
  const AttentionShape long_shape = {.q_heads = 4, .kv_heads = 1, .head_dim = 128};
  problems.push_back(AttentionProblem::Dense(long_shape, DType::kF16, DType::kF32, {{3000, 1}}));
  Device one(MakeCpuKernels(1));
  for (const AttentionProblem& problem : problems) {
    const Values expected = problem.Run(one);
    for (const int threads : {2, 3, 5}) {
      Device several(MakeCpuKernels(threads));
      ExpectSameBits(problem.Run(several), expected);
    }
  }
}

// What follows a query in its sequence must not reach it, not even as 0 * infinity where a backend
// computes row by row. A tensor core multiplies what some rows of a tile must not see by 0, so what
// a step itself stores has to be finite there.
TEST_P(AttentionInvarianceTest, QueryIgnoresWhatFollowsIt) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 2, .kv_heads = 1, .head_dim = 32};
  const auto problem =
      AttentionProblem::Dense(shape, kv_type, device.activation_type(), {{60, 10}});
  AttentionProblem poisoned = problem;
  const bool by_row = device.activation_type() == DType::kF32;
  const Values nan(shape.head_dim, std::numeric_limits<float>::quiet_NaN());
  const Values large(shape.head_dim, 1e30f);
  for (int64_t p = 65; p < 70; ++p) {
    const int64_t key = problem.KeyByte(0, p, 0);
    if (by_row) poisoned.cache.Set(key, nan);
    poisoned.cache.Set(key + problem.cache.ValueOffset(), by_row ? nan : large);
  }
  const Values clean = problem.Run(device);
  const Values after = poisoned.Run(device);
  const auto seen = static_cast<ptrdiff_t>(5 * problem.out_width());
  ExpectSameBits(Values(after.begin(), after.begin() + seen),
                 Values(clean.begin(), clean.begin() + seen));
  for (size_t i = seen; i < after.size(); ++i) ASSERT_FALSE(std::abs(after[i]) < 1e6f) << i;
}

// A backend may read keys ahead of the step, but not those that the step stores.
TEST_P(AttentionInvarianceTest, TokenReadsWhatItsStepStores) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 4, .kv_heads = 2, .head_dim = 128};
  for (const int64_t context : {700, 5000}) {
    const DType type = device.activation_type();
    auto problem = AttentionProblem::Dense(shape, kv_type, type, {{context, 1}});
    problem.step.num_decode = 1;
    AttentionArgs args = problem.Place(device);
    void* qkv = device.PlaceActivations(RandomValues(problem.random, args.q_stride, type));
    args.q = qkv;
    args.out = device.PlaceActivations(Values(problem.out_width()));
    const auto run = [&](bool store) {
      device->BeginStep(problem.step.Layout());
      if (store) {
        device->StoreKv(
            {.cache = args.cache, .qkv = qkv, .layer = args.layer, .q_heads = shape.q_heads});
      }
      device->Attention(args);
      return device.ReadActivations(args.out, problem.out_width());
    };
    const Values before = run(false);
    const Values stored = run(true);
    ExpectSameBits(run(false), stored);
    EXPECT_NE(stored, before);
    device.FreePlaced();
  }
}

TEST_P(AttentionInvarianceTest, RowsOfNoBlockAreLeftAlone) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  auto problem = AttentionProblem::Sparse(shape, kv_type, device.activation_type());
  Values expected = problem.Run(device);
  Values expected_lse = problem.RunLse(device);
  const QueryBlock left_out = problem.step.blocks[5];
  problem.step.blocks.erase(problem.step.blocks.begin() + 5);
  const auto forget = [&](Values& values, int64_t width) {
    std::fill_n(values.begin() + left_out.first_row * width, left_out.num_rows * width, 0.0f);
  };
  forget(expected, problem.out_width());
  forget(expected_lse, shape.q_heads);
  ExpectSameBits(problem.Run(device), expected);
  ExpectSameBits(problem.RunLse(device), expected_lse);
}

// A selection of every candidate leaves nothing out: dense attention within twice its bound.
TEST_P(AttentionInvarianceTest, CompleteSelectionIsDense) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  auto dense =
      AttentionProblem::Dense(shape, kv_type, device.activation_type(), {{517, 1}, {320, 64}});
  AttentionProblem complete = dense;
  complete.selection = HostSelection(AttentionProblem::kLayers, 2, shape.kv_heads, 64);
  for (QueryBlock& block : complete.step.blocks) {
    block.num_sinks = 16;
    block.window_begin = 248;
    block.slot = block.sequence;
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      for (int32_t b = 2; b < 31; ++b) {
        complete.selection.List(AttentionProblem::kLayer, block.slot, head, kFinalList)
            .push_back(b);
      }
    }
  }
  std::vector<double> bound = dense.Bound(device.activation_type());
  for (double& b : bound) b *= 2;
  AsPromptsAndDecoded(dense, [&] {
    complete.step.num_decode = dense.step.num_decode;
    ExpectWithin(complete.Run(device), dense.Run(device), bound);
  });
}

// Forks of one context share its pages; what a fork's own pages would hold, nothing reads.
TEST_P(AttentionInvarianceTest, SharedPagesAreAsPagesApart) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  const std::vector<SequenceShape> forks = {{323, 1}, {290, 1}, {1000, 1}, {192, 70}, {250, 9}};
  constexpr int64_t kSharedPages = 3;
  for (const bool sparse : {false, true}) {
    SCOPED_TRACE(sparse ? "sparse" : "dense");
    const auto draw = sparse ? &AttentionProblem::Sparse : &AttentionProblem::Dense;
    AttentionProblem apart = draw(shape, kv_type, device.activation_type(), forks);
    const HostCache known =
        AttentionProblem::Dense(shape, kv_type, device.activation_type(), forks).cache;
    AttentionProblem shared = apart;
    for (int32_t s = 0; s < apart.step.num_sequences(); ++s) {
      for (int64_t i = 0; i < kSharedPages; ++i) {
        const int32_t own = apart.step.pages[apart.step.page_begin[s] + i];
        const int32_t first = apart.step.pages[i];
        apart.cache.CopyPage(known, AttentionProblem::kLayer, first, own);
        if (s == 0) shared.cache.CopyPage(known, AttentionProblem::kLayer, first, first);
        shared.step.pages[shared.step.page_begin[s] + i] = first;
        if (s > 0) shared.cache.ForgetPage(AttentionProblem::kLayer, own);
      }
    }
    AsPromptsAndDecoded(apart, [&] {
      shared.step.num_decode = apart.step.num_decode;
      ExpectSameBits(shared.Run(device), apart.Run(device));
    });
  }
}

}  // namespace
}  // namespace everlong
