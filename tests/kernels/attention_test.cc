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
      {.q_heads = 5, .kv_heads = 5, .head_dim = 24, .frequency = 5000.0}};
  return shapes;
}

std::vector<AttentionProblem> DenseAndSparse(const AttentionShape& shape, DType kv_type,
                                             DType activation_type) {
  return {AttentionProblem::Dense(shape, kv_type, activation_type),
          AttentionProblem::Sparse(shape, kv_type, activation_type)};
}

using Parameters = std::tuple<DType, AttentionShape>;
class AttentionTest : public ::testing::TestWithParam<Parameters> {};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16),
                                            ::testing::ValuesIn(Shapes())),
                         [](const ::testing::TestParamInfo<Parameters>& info) {
                           return TypeName(std::get<0>(info.param)) +
                                  ShapeName(std::get<1>(info.param));
                         });

// What the reference takes long for is done once for all backends.
TEST_P(AttentionTest, AgreesWithReference) {
  const auto& [kv_type, shape] = GetParam();
  Device reference(MakeReferenceKernels());
  const DType type = reference.activation_type();
  for (const AttentionProblem& problem : DenseAndSparse(shape, kv_type, type)) {
    Values expected_lse;
    const Values expected = problem.Run(reference, &expected_lse);
    const std::vector<double> bound = problem.Bound(reference, type);
    const std::vector<double> lse_bound = problem.LseBound(expected_lse);
    for (const Backend& backend : BackendsBesideReference()) {
      SCOPED_TRACE(backend.name);
      Device device(backend);
      Values lse;
      ExpectWithin(problem.Run(device, &lse), expected, bound);
      ExpectWithin(lse, expected_lse, lse_bound);
    }
  }
}

class AttentionShapeTest : public ::testing::TestWithParam<AttentionShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapeTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return ShapeName(info.param); });

// The reference sums in double: the bound of f32 shrinks by 2^29, and that of two roundings to f32
// remains.
TEST_P(AttentionShapeTest, ReferenceAgreesWithNaiveDefinition) {
  Device reference(MakeReferenceKernels());
  for (const AttentionProblem& problem : DenseAndSparse(GetParam(), DType::kF16, DType::kF32)) {
    const Values naive = problem.NaiveResult();
    std::vector<double> bound = problem.Bound(reference, DType::kF32);
    for (size_t i = 0; i < bound.size(); ++i) {
      bound[i] = bound[i] * 0x1p-29 + 2 * RoundingError(DType::kF32, naive[i]);
    }
    ExpectWithin(problem.Run(reference), naive, bound);

    const Values lse = problem.NaiveLse();
    std::vector<double> lse_bound = problem.LseBound(lse);
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
  Device reference(MakeReferenceKernels());
  ExpectRowsDiffer(complete, incomplete, problem.Bound(reference, DType::kF32),
                   problem.step.num_tokens());
  const Values lse = problem.NaiveLse();
  ExpectRowsDiffer(lse, problem.NaiveLse(kMissing), problem.LseBound(lse),
                   problem.step.num_tokens());
}

class AttentionInvarianceTest : public ::testing::TestWithParam<std::tuple<Backend, DType>> {};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionInvarianceTest,
                         ::testing::Combine(::testing::ValuesIn(Backends()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + TypeName(std::get<1>(info.param));
                         });

TEST_P(AttentionInvarianceTest, QueryIsTheSameInAnyBatchAndChunk) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  for (const auto& problem : DenseAndSparse(shape, kv_type, device.activation_type())) {
    const Values whole = problem.Run(device);
    const AttentionArgs placed = problem.Place(device);
    for (const int32_t chunk : {1, 3, 8, 64}) {
      Values parts;
      for (const QueryBlock& block : problem.step.blocks) {
        for (int32_t first = 0; first < block.num_rows; first += chunk) {
          const Step part =
              problem.step.Slice(block, first, std::min(chunk, block.num_rows - first));
          const Values out = problem.Run(device, placed, part, block.first_row + first);
          parts.insert(parts.end(), out.begin(), out.end());
        }
      }
      SCOPED_TRACE("chunks of " + std::to_string(chunk));
      ExpectSameBits(parts, whole);
    }
  }
}

TEST(AttentionThreadsTest, ThreadsDoNotChangeAttention) {
  const AttentionShape shape = {.q_heads = 9, .kv_heads = 3, .head_dim = 64};
  std::vector<AttentionProblem> problems = DenseAndSparse(shape, DType::kBF16, DType::kF32);
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

// What follows a query in its sequence must not reach it, not even as 0 * infinity.
TEST_P(AttentionInvarianceTest, QueryIgnoresWhatFollowsIt) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 2, .kv_heads = 1, .head_dim = 32};
  const auto problem =
      AttentionProblem::Dense(shape, kv_type, device.activation_type(), {{60, 10}});
  AttentionProblem poisoned = problem;
  const Values nan(shape.head_dim, std::numeric_limits<float>::quiet_NaN());
  for (int64_t p = 65; p < 70; ++p) {
    poisoned.cache.Set(problem.KeyByte(0, p, 0), nan);
    poisoned.cache.Set(problem.KeyByte(0, p, 0) + problem.cache.ValueOffset(), nan);
  }
  const Values clean = problem.Run(device);
  const Values after = poisoned.Run(device);
  const auto seen = static_cast<ptrdiff_t>(5 * problem.out_width());
  ExpectSameBits(Values(after.begin(), after.begin() + seen),
                 Values(clean.begin(), clean.begin() + seen));
  for (size_t i = seen; i < after.size(); ++i) ASSERT_TRUE(std::isnan(after[i])) << i;
}

TEST_P(AttentionInvarianceTest, RowsOfNoBlockAreLeftAlone) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const AttentionShape shape = {.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  auto problem = AttentionProblem::Sparse(shape, kv_type, device.activation_type());
  Values expected = problem.Run(device);
  Values expected_lse = problem.RunLse(device);
  const QueryBlock left_out = problem.step.blocks[2];
  problem.step.blocks.erase(problem.step.blocks.begin() + 2);
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
  Device reference(MakeReferenceKernels());
  const AttentionShape shape = {.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const auto dense =
      AttentionProblem::Dense(shape, kv_type, device.activation_type(), {{320, 64}, {517, 1}});
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
  std::vector<double> bound = dense.Bound(reference, device.activation_type());
  for (double& b : bound) b *= 2;
  ExpectWithin(complete.Run(device), dense.Run(device), bound);
}

}  // namespace
}  // namespace everlong
