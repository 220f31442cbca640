// Attention of ragged batches over a paged cache.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/device.h"
#include "tests/kernels/step.h"

namespace everlong {
namespace {

struct Shape {
  int32_t q_heads = 1;
  int32_t kv_heads = 1;
  int32_t head_dim = 8;
  bool rotate = true;
  float rope_scale = 1.0f;
  // Rotation is by position times this times theta^(-2 i / head_dim): large, it stands for
  // positions that a test cannot afford.
  double frequency = 1.0;
};

// A step whose keys and values are all stored, and its queries. What lies in the cache beyond the
// sequences, and between queries, is NaN.
struct Problem {
  static constexpr int64_t kLayers = 2;
  static constexpr int64_t kLayer = 1;

  Problem(const Shape& shape, DType kv_type, DType activation_type,
          const std::vector<SequenceShape>& sequences = MixedShapes())
      : shape(shape),
        step(random, sequences),
        cache(kv_type, shape.kv_heads, shape.head_dim, step.num_pages(), kLayers),
        scale(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {
    FillCache(cache, step, kLayer, random);
    q = RandomValues(random, step.num_tokens() * out_width(), activation_type);
    for (int i = 0; i < shape.head_dim / 2; ++i) {
      inv_freq.push_back(
          static_cast<float>(shape.frequency * std::pow(10000.0, -2.0 * i / shape.head_dim)));
    }
  }

  int64_t out_width() const { return int64_t{shape.q_heads} * shape.head_dim; }

  int64_t position(int32_t sequence, int32_t row) const {
    return step.context_begin[sequence] + row - step.query_begin[sequence];
  }

  // Attention of `step`, whose queries begin at row `first_row` of q.
  Values Run(Device& device, const Step& part, int32_t first_row) const {
    const int64_t stride = out_width() + 2 * int64_t{shape.kv_heads} * shape.head_dim;
    Values rows(part.num_tokens() * stride, std::numeric_limits<float>::quiet_NaN());
    for (int32_t i = 0; i < part.num_tokens(); ++i) {
      std::copy_n(q.begin() + (first_row + i) * out_width(), out_width(),
                  rows.begin() + i * stride);
    }
    AttentionArgs args = {
        .cache = cache.shape,
        .rope = {.inv_freq = shape.rotate ? inv_freq.data() : nullptr, .scale = shape.rope_scale},
        .q = device.PlaceActivations(rows),
        .out = device.PlaceActivations(Values(part.num_tokens() * out_width())),
        .q_stride = stride,
        .layer = kLayer,
        .q_heads = shape.q_heads,
        .scale = scale,
        .rotate = shape.rotate};
    args.cache.base = device.Place(cache.bytes);
    device->BeginStep(part.Layout());
    device->Attention(args);
    return device.ReadActivations(args.out, part.num_tokens() * out_width());
  }

  Values Run(Device& device) const { return Run(device, step, 0); }

  // The same problem with the values' magnitudes: its result is the mean magnitude of what is
  // summed.
  Problem OfMagnitudes() const {
    Problem problem = *this;
    for (int32_t s = 0; s < step.num_sequences(); ++s) {
      for (int64_t p = 0; p < position(s, step.query_begin[s + 1]); ++p) {
        for (int32_t h = 0; h < shape.kv_heads; ++h) {
          Values value = cache.Value(kLayer, step.page(s, p), h, p % 64);
          for (float& v : value) v = std::abs(v);
          problem.cache.Set(cache.KeyByte(kLayer, step.page(s, p), h, p % 64) + cache.ValueOffset(),
                            value);
        }
      }
    }
    return problem;
  }

  std::mt19937 random{1};
  Shape shape;
  Step step;
  HostCache cache;
  Values q;  // [num_tokens][q_heads * head_dim]
  std::vector<float> inv_freq;
  float scale;
};

double Norm(const float* x, int64_t count) {
  double squares = 0.0;
  for (int64_t i = 0; i < count; ++i) squares += static_cast<double>(x[i]) * x[i];
  return std::sqrt(squares);
}

double LargestKeyNorm(const Problem& problem, int32_t sequence, int64_t head) {
  double largest = 0.0;
  const Step& step = problem.step;
  for (int64_t p = 0; p < problem.position(sequence, step.query_begin[sequence + 1]); ++p) {
    const Values key = problem.cache.Key(Problem::kLayer, step.page(sequence, p), head, p % 64);
    largest = std::max(largest, Norm(key.data(), problem.shape.head_dim));
  }
  return largest;
}

// The share by which a softmax weight over `keys` keys may be off, where `score` bounds the scores'
// absolute values:
// - A rotation is good to 16 roundings of a vector's norm: sine and cosine to 4 roundings of 1,
//   their scaling, the products and their sum make 7 |a| + 7 |b| per element of a pair (a, b).
//   Cauchy-Schwarz turns norms into a bound of the dot product, which rounds head_dim + 1 times
//   more.
// - The exponent rounds at most three times, relative to at most twice `score`, as do all the
//   changes of maximum together.
// - A weight and each rescaling of a running sum, one per block, is an exp and a product or two.
double WeightError(double score, int64_t head_dim, int64_t keys) {
  const int64_t rescalings = keys / kBlockTokens + 2;
  return Gamma(head_dim + 33) * score + Gamma(3) * 4 * score +
         Gamma((rescalings + 1) * (kExpRoundings + 2));
}

// The error bound of every element of a result. Weights are off by WeightError; numerator and
// denominator, sums over the keys, round once a key and may be off in opposite directions.
// `magnitudes` is the result of problem.OfMagnitudes().
std::vector<double> Bound(const Problem& problem, const Values& magnitudes, DType type) {
  const Shape& shape = problem.shape;
  std::vector<double> bound;
  for (int32_t s = 0; s < problem.step.num_sequences(); ++s) {
    std::vector<double> key_norms;
    for (int64_t h = 0; h < shape.kv_heads; ++h) key_norms.push_back(LargestKeyNorm(problem, s, h));
    for (int32_t row = problem.step.query_begin[s]; row < problem.step.query_begin[s + 1]; ++row) {
      for (int32_t h = 0; h < shape.q_heads; ++h) {
        const float* q = problem.q.data() + (int64_t{row} * shape.q_heads + h) * shape.head_dim;
        const double score = problem.scale * shape.rope_scale * shape.rope_scale *
                             Norm(q, shape.head_dim) *
                             key_norms[h / (shape.q_heads / shape.kv_heads)];
        const int64_t keys = problem.position(s, row) + 1;
        const double share = 2 * (WeightError(score, shape.head_dim, keys) + Gamma(keys + 2));
        for (int32_t i = 0; i < shape.head_dim; ++i) {
          const double magnitude = magnitudes[bound.size()];
          bound.push_back(share * magnitude + RoundingError(type, magnitude));
        }
      }
    }
  }
  return bound;
}

// The definition: all scores of all queries in memory at once, in double. `without` >= 0 leaves out
// that position.
Values NaiveAttention(const Problem& problem, int64_t without = -1) {
  const Shape& shape = problem.shape;
  const int64_t dim = shape.head_dim;
  const auto rotated = [&](const Values& x, int64_t position) {
    std::vector<double> out(x.begin(), x.end());
    for (int64_t i = 0; shape.rotate && i < dim / 2; ++i) {
      const double angle = static_cast<double>(position) * problem.inv_freq[i];
      out[i] = (x[i] * std::cos(angle) - x[i + dim / 2] * std::sin(angle)) * shape.rope_scale;
      out[i + dim / 2] =
          (x[i + dim / 2] * std::cos(angle) + x[i] * std::sin(angle)) * shape.rope_scale;
    }
    return out;
  };
  Values result;
  for (int32_t s = 0; s < problem.step.num_sequences(); ++s) {
    for (int32_t row = problem.step.query_begin[s]; row < problem.step.query_begin[s + 1]; ++row) {
      for (int64_t h = 0; h < shape.q_heads; ++h) {
        const int64_t kv_head = h / (shape.q_heads / shape.kv_heads);
        const auto begin = problem.q.begin() + (int64_t{row} * shape.q_heads + h) * dim;
        const std::vector<double> query =
            rotated(Values(begin, begin + dim), problem.position(s, row));
        std::vector<double> scores;
        for (int64_t p = 0; p <= problem.position(s, row); ++p) {
          const std::vector<double> key = rotated(
              problem.cache.Key(Problem::kLayer, problem.step.page(s, p), kv_head, p % 64), p);
          double score = 0.0;
          for (int64_t i = 0; i < dim; ++i) score += query[i] * key[i] * problem.scale;
          scores.push_back(p == without ? -INFINITY : score);
        }
        const double max = *std::max_element(scores.begin(), scores.end());
        double total = 0.0;
        for (double& score : scores) total += score = std::exp(score - max);
        std::vector<double> out(dim);
        for (size_t p = 0; p < scores.size(); ++p) {
          const Values value =
              problem.cache.Value(Problem::kLayer, problem.step.page(s, static_cast<int64_t>(p)),
                                  kv_head, static_cast<int64_t>(p) % 64);
          for (int64_t i = 0; i < dim; ++i) out[i] += scores[p] / total * value[i];
        }
        result.insert(result.end(), out.begin(), out.end());
      }
    }
  }
  return result;
}

const std::vector<Shape>& Shapes() {
  static const std::vector<Shape> shapes = {
      {.q_heads = 1, .kv_heads = 1, .head_dim = 8},
      {.q_heads = 4, .kv_heads = 4, .head_dim = 16},
      {.q_heads = 4, .kv_heads = 2, .head_dim = 32, .rotate = false},
      {.q_heads = 9, .kv_heads = 3, .head_dim = 64},
      {.q_heads = 4, .kv_heads = 1, .head_dim = 80, .frequency = 1000.0},
      {.q_heads = 6, .kv_heads = 2, .head_dim = 96, .rope_scale = 1.25f},
      {.q_heads = 16, .kv_heads = 2, .head_dim = 128},
      {.q_heads = 5, .kv_heads = 5, .head_dim = 24, .frequency = 5000.0}};
  return shapes;
}

std::string ShapeName(const Shape& shape) {
  std::string name = "q";
  name += std::to_string(shape.q_heads);
  name.append("kv").append(std::to_string(shape.kv_heads));
  name.append("d").append(std::to_string(shape.head_dim));
  return name;
}

using Parameters = std::tuple<Backend, DType, Shape>;
class AttentionTest : public ::testing::TestWithParam<Parameters> {};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest,
                         ::testing::Combine(::testing::ValuesIn(BackendsBesideReference()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16),
                                            ::testing::ValuesIn(Shapes())),
                         [](const ::testing::TestParamInfo<Parameters>& info) {
                           return std::get<0>(info.param).name + TypeName(std::get<1>(info.param)) +
                                  ShapeName(std::get<2>(info.param));
                         });

TEST_P(AttentionTest, AgreesWithReference) {
  const auto& [backend, kv_type, shape] = GetParam();
  Device device(backend);
  Device reference(MakeReferenceKernels());
  const Problem problem(shape, kv_type, device.activation_type());
  ExpectWithin(problem.Run(device), problem.Run(reference),
               Bound(problem, problem.OfMagnitudes().Run(reference), device.activation_type()));
}

class AttentionShapeTest : public ::testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionShapeTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return ShapeName(info.param); });

// The reference sums in double: the bound of f32 shrinks by 2^29, and one rounding remains.
TEST_P(AttentionShapeTest, ReferenceAgreesWithNaiveDefinition) {
  Device reference(MakeReferenceKernels());
  const Problem problem(GetParam(), DType::kF16, DType::kF32);
  const Values magnitudes = problem.OfMagnitudes().Run(reference);
  std::vector<double> bound = Bound(problem, magnitudes, DType::kF32);
  for (size_t i = 0; i < bound.size(); ++i) {
    bound[i] = bound[i] * 0x1p-29 + 2 * RoundingError(DType::kF32, magnitudes[i]);
  }
  ExpectWithin(problem.Run(reference), NaiveAttention(problem), bound);
}

// A bound is of use if it is below what a mistake changes: here, for every query that sees it, the
// loss of one key among many.
TEST_P(AttentionShapeTest, BoundNoticesAMissingKey) {
  constexpr int64_t kMissing = 66;
  const Problem problem(GetParam(), DType::kF32, DType::kF32, {{140, 7}});
  const Values complete = NaiveAttention(problem);
  const Values incomplete = NaiveAttention(problem, kMissing);
  Device reference(MakeReferenceKernels());
  const std::vector<double> bound =
      Bound(problem, problem.OfMagnitudes().Run(reference), DType::kF32);
  const auto width = static_cast<size_t>(problem.out_width());
  for (size_t row = 0; row < complete.size() / width; ++row) {
    double ratio = 0.0;
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      ratio = std::max(ratio, std::abs(double{complete[i]} - incomplete[i]) / bound[i]);
    }
    EXPECT_GT(ratio, 2.0) << "row " << row;
  }
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
  const Problem problem({.q_heads = 6, .kv_heads = 2, .head_dim = 64}, kv_type,
                        device.activation_type());
  const Values whole = problem.Run(device);
  for (const int32_t chunk : {1, 3, 8, 64}) {
    Values parts;
    for (int32_t s = 0; s < problem.step.num_sequences(); ++s) {
      const int32_t row = problem.step.query_begin[s];
      const int32_t queries = problem.step.query_begin[s + 1] - row;
      for (int32_t first = 0; first < queries; first += chunk) {
        const Step part = problem.step.Slice(s, first, std::min(chunk, queries - first));
        const Values out = problem.Run(device, part, row + first);
        parts.insert(parts.end(), out.begin(), out.end());
      }
    }
    SCOPED_TRACE("chunks of " + std::to_string(chunk));
    ExpectSameBits(parts, whole);
  }
}

TEST(AttentionThreadsTest, ThreadsDoNotChangeAttention) {
  const Problem problem({.q_heads = 9, .kv_heads = 3, .head_dim = 64}, DType::kBF16, DType::kF32);
  const Problem decode({.q_heads = 4, .kv_heads = 1, .head_dim = 128}, DType::kF16, DType::kF32,
                       {{3000, 1}});
  Device one(MakeCpuKernels(1));
  for (const int threads : {2, 3, 5}) {
    Device several(MakeCpuKernels(threads));
    ExpectSameBits(problem.Run(several), problem.Run(one));
    ExpectSameBits(decode.Run(several), decode.Run(one));
  }
}

// What follows a query in its sequence must not reach it, not even as 0 * infinity.
TEST_P(AttentionInvarianceTest, QueryIgnoresWhatFollowsIt) {
  const auto& [backend, kv_type] = GetParam();
  Device device(backend);
  const Shape shape = {.q_heads = 2, .kv_heads = 1, .head_dim = 32};
  const Problem problem(shape, kv_type, device.activation_type(), {{60, 10}});
  Problem poisoned = problem;
  for (int64_t p = 65; p < 70; ++p) {
    const int64_t key = problem.cache.KeyByte(Problem::kLayer, problem.step.page(0, p), 0, p % 64);
    const Values nan(shape.head_dim, std::numeric_limits<float>::quiet_NaN());
    poisoned.cache.Set(key, nan);
    poisoned.cache.Set(key + problem.cache.ValueOffset(), nan);
  }
  const Values clean = problem.Run(device);
  const Values after = poisoned.Run(device);
  const auto seen = static_cast<ptrdiff_t>(5 * problem.out_width());
  ExpectSameBits(Values(after.begin(), after.begin() + seen),
                 Values(clean.begin(), clean.begin() + seen));
  for (size_t i = seen; i < after.size(); ++i) ASSERT_TRUE(std::isnan(after[i])) << i;
}

}  // namespace
}  // namespace everlong
