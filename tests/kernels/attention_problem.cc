#include "tests/kernels/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

namespace everlong {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double Norm(const std::vector<double>& x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

// Of what a rotation turns together. The dot product of two vectors' norms bounds the absolute
// values that the vectors' dot product sums, whatever rotation both are given.
std::vector<double> PairNorms(const std::vector<double>& x) {
  const size_t half = x.size() / 2;
  std::vector<double> norms(half);
  for (size_t i = 0; i < half; ++i) norms[i] = std::hypot(x[i], x[i + half]);
  return norms;
}

// The share by which f32 may be off in a softmax weight over `keys` keys, where `score` bounds the
// scores' absolute values:
// - A rotation is good to 16 roundings of a vector's norm: sine and cosine to 4 roundings of 1,
//   their scaling, the products and their sum make 7 |a| + 7 |b| per element of a pair (a, b).
//   Cauchy-Schwarz turns norms into a bound of the dot product, which rounds head_dim + 1 times
//   more.
// - The exponent rounds at most three times, relative to at most twice `score`, as do all the
//   changes of maximum together.
// - A weight and each rescaling of a running sum, one per block and one where parts of it are
//   merged, is an exp and a product or two.
double WeightError(double score, int64_t head_dim, int64_t keys, DType type) {
  const int64_t rescalings = 2 * (keys / kBlockTokens + 2);
  return SumError(head_dim + 33, type) * score + Gamma(3) * 4 * score +
         Gamma((rescalings + 1) * (kExpRoundings + 2));
}

// How often keys and weighted values are rounded to 16 bits where they are multiplied so, apart
// from queries and weights: a scale may be multiplied in before.
int64_t KeyRoundings(DType kv_type) {
  return kv_type == DType::kF8 ? 2 : 1;
}
int64_t ValueRoundings(DType kv_type) {
  return kv_type == DType::kF8 ? 1 : 0;
}

// The positions of a query and of a key that it reads, as the rotary embedding sees them. The key
// is the `index`th of `num_read`; the last one is the query's own.
int64_t SeenQuery(const QueryBlock& block, int64_t query, int64_t key, int64_t num_read) {
  switch (block.positions) {
    case Positions::kTrue:
      return query;
    case Positions::kStreaming:
      return num_read - 1;
    case Positions::kClipped:
      return key >= block.window_begin ? query : block.clip_distance;
  }
  return 0;
}
int64_t SeenKey(const QueryBlock& block, int64_t key, int64_t index) {
  switch (block.positions) {
    case Positions::kTrue:
      return key;
    case Positions::kStreaming:
      return index;
    case Positions::kClipped:
      return key >= block.window_begin ? key : 0;
  }
  return 0;
}

}  // namespace

std::string ShapeName(const AttentionShape& shape) {
  std::string name = "q";
  name.append(std::to_string(shape.q_heads)).append("kv").append(std::to_string(shape.kv_heads));
  return name.append("d").append(std::to_string(shape.head_dim));
}

const float* InverseFrequencies(int32_t head_dim, double frequency) {
  static std::map<std::pair<int32_t, double>, std::vector<float>> known;
  std::vector<float>& inv_freq = known[{head_dim, frequency}];
  for (auto i = static_cast<int32_t>(inv_freq.size()); i < head_dim / 2; ++i) {
    inv_freq.push_back(static_cast<float>(frequency * std::pow(10000.0, -2.0 * i / head_dim)));
  }
  return inv_freq.data();
}

AttentionProblem::AttentionProblem(const AttentionShape& shape, DType kv_type,
                                   DType activation_type,
                                   const std::vector<SequenceShape>& sequences)
    : shape(shape),
      step(random, sequences),
      cache(kv_type, shape.kv_heads, shape.head_dim, step.num_pages(), kLayers),
      selection(kLayers, 1, shape.kv_heads, 1),
      q(RandomValues(random, step.num_tokens() * out_width(), activation_type)),
      inv_freq(InverseFrequencies(shape.head_dim, shape.frequency)),
      scale(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {
  FillCache(cache, step, kLayer, random);
}

AttentionProblem AttentionProblem::Dense(const AttentionShape& shape, DType kv_type,
                                         DType activation_type,
                                         const std::vector<SequenceShape>& sequences) {
  return {shape, kv_type, activation_type, sequences};
}

std::vector<SequenceShape> AttentionProblem::SparseShapes() {
  return {{200, 1}, {331, 1}, {3, 1}, {520, 1}, {0, 150}, {448, 64}, {130, 70}, {260, 5}};
}

AttentionProblem AttentionProblem::Sparse(const AttentionShape& shape, DType kv_type,
                                          DType activation_type,
                                          const std::vector<SequenceShape>& sequences) {
  AttentionProblem problem(shape, kv_type, activation_type, sequences);
  problem.selection = MakeSparse(problem.step, problem.random, kLayers, kLayer, shape.kv_heads);
  problem.ForgetWhatNothingReads();
  return problem;
}

const std::vector<int32_t>& AttentionProblem::Selected(const QueryBlock& block,
                                                       int32_t kv_head) const {
  static const std::vector<int32_t> none;
  return block.slot < 0 ? none : selection.List(kLayer, block.slot, kv_head, kFinalList);
}

int64_t AttentionProblem::KeyByte(int32_t sequence, int64_t position, int32_t kv_head) const {
  return cache.KeyByte(kLayer, step.page(sequence, position), kv_head, position % 64);
}

void AttentionProblem::ForgetWhatNothingReads() {
  const HostCache known = cache;
  cache = HostCache(known.shape.type, shape.kv_heads, shape.head_dim, step.num_pages(), kLayers);
  for (const QueryBlock& block : step.blocks) {
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      const int32_t last_row = block.first_row + block.num_rows - 1;
      for (const int64_t p : ReadPositions(step, block, last_row, Selected(block, h))) {
        const int64_t key = KeyByte(block.sequence, p, h);
        cache.Set(key, known.At(key));
        cache.Set(key + cache.ValueOffset(), known.At(key + cache.ValueOffset()));
      }
    }
  }
}

void AttentionProblem::MarkValues(float mark) {
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    for (int64_t p = 0; p < step.length(s); ++p) {
      Values marked(shape.head_dim, 0.0f);
      marked[p % shape.head_dim] = mark;
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t value = KeyByte(s, p, h) + cache.ValueOffset();
        if (!std::isnan(cache.At(value)[0])) cache.Set(value, marked);
      }
    }
  }
}

AttentionArgs AttentionProblem::Place(Device& device) const {
  AttentionArgs args = {
      .cache = cache.shape,
      .selection = selection.Place(device),
      .rope = {.inv_freq = shape.rotate ? inv_freq : nullptr, .scale = shape.rope_scale},
      .q_stride = out_width() + int64_t{2} * shape.kv_heads * shape.head_dim,
      .layer = kLayer,
      .q_heads = shape.q_heads,
      .scale = scale,
      .rotate = shape.rotate};
  args.cache.base = device.Place(cache.bytes);
  return args;
}

Values AttentionProblem::Run(Device& device, AttentionArgs placed, const Step& part,
                             int32_t first_row, Values* lse) const {
  Values rows(part.num_tokens() * placed.q_stride, kNan);
  for (int32_t i = 0; i < part.num_tokens(); ++i) {
    std::copy_n(q.begin() + (first_row + i) * out_width(), out_width(),
                rows.begin() + i * placed.q_stride);
  }
  placed.q = device.PlaceActivations(rows);
  placed.out = device.PlaceActivations(Values(part.num_tokens() * out_width()));
  const int64_t num_queries = part.num_tokens() * int64_t{shape.q_heads};
  if (lse != nullptr) placed.lse = device.PlaceFloats(Values(num_queries));
  device->BeginStep(part.Layout());
  device->Attention(placed);
  if (lse != nullptr) *lse = device.ReadFloats(placed.lse, num_queries);
  return device.ReadActivations(placed.out, part.num_tokens() * out_width());
}

Values AttentionProblem::Run(Device& device, Values* lse) const {
  Values out = Run(device, Place(device), step, 0, lse);
  device.FreePlaced();
  return out;
}

Values AttentionProblem::RunLse(Device& device) const {
  Values lse;
  Run(device, &lse);
  return lse;
}

AttentionProblem::Reads AttentionProblem::ReadsOf(const QueryBlock& block, int32_t kv_head) const {
  const int32_t last_row = block.first_row + block.num_rows - 1;
  Reads reads;
  reads.positions = ReadPositions(step, block, last_row, Selected(block, kv_head));
  for (size_t i = 0; i < reads.positions.size(); ++i) {
    const int64_t position = reads.positions[i];
    const int64_t key = KeyByte(block.sequence, position, kv_head);
    const int64_t seen = SeenKey(block, position, static_cast<int64_t>(i));
    reads.keys.push_back(Rotated(cache.At(key), seen));
    reads.pair_norms.push_back(PairNorms(reads.keys.back()));
    reads.values.push_back(cache.At(key + cache.ValueOffset()));
  }
  return reads;
}

template <class Visit>
void AttentionProblem::ForEachQuery(const Visit& visit) const {
  const int32_t group = shape.q_heads / shape.kv_heads;
  for (const QueryBlock& block : step.blocks) {
    const int32_t end = block.first_row + block.num_rows;
    for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      const Reads reads = ReadsOf(block, kv_head);
      for (int32_t row = block.first_row; row < end; ++row) {
        const int64_t num_read = static_cast<int64_t>(reads.positions.size()) - (end - 1 - row);
        for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          visit(Query{block, reads, num_read, row, head});
        }
      }
    }
  }
}

std::vector<double> AttentionProblem::Rotated(const Values& x, int64_t seen_position) const {
  std::vector<double> out(x.begin(), x.end());
  const size_t half = x.size() / 2;
  for (size_t i = 0; shape.rotate && i < half; ++i) {
    const double angle = static_cast<double>(seen_position) * inv_freq[i];
    out[i] = (x[i] * std::cos(angle) - x[i + half] * std::sin(angle)) * shape.rope_scale;
    out[i + half] = (x[i + half] * std::cos(angle) + x[i] * std::sin(angle)) * shape.rope_scale;
  }
  return out;
}

std::vector<double> AttentionProblem::RotatedQuery(const Query& query, int64_t i) const {
  const auto begin = q.begin() + query.result(shape.q_heads) * shape.head_dim;
  const int64_t own = step.position(query.block.sequence, query.row);
  return Rotated(Values(begin, begin + shape.head_dim),
                 SeenQuery(query.block, own, query.reads.positions[i], query.num_read));
}

std::vector<double> AttentionProblem::Scores(const Query& query, int64_t without) const {
  std::vector<double> scores;
  std::vector<double> rotated;
  for (int64_t i = 0; i < query.num_read; ++i) {
    const int64_t position = query.reads.positions[i];
    const std::vector<double>& key = query.reads.keys[i];
    // Among keys outside the window and among those inside it all see the same query.
    const bool turns = i == 0 || (position >= query.block.window_begin) !=
                                     (query.reads.positions[i - 1] >= query.block.window_begin);
    if (turns) rotated = RotatedQuery(query, i);
    const double dot = std::inner_product(key.begin(), key.end(), rotated.begin(), 0.0);
    scores.push_back(position == without ? -INFINITY : dot * scale);
  }
  return scores;
}

std::vector<double> AttentionProblem::Weights(const Query& query, int64_t without) const {
  std::vector<double> weights = Scores(query, without);
  const double max = *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(weight - max);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= total;
  return weights;
}

std::vector<double> AttentionProblem::WeightedSum(const Query& query,
                                                  const std::vector<double>& weights) const {
  std::vector<double> out(shape.head_dim);
  for (int64_t i = 0; i < query.num_read; ++i) {
    for (int32_t d = 0; d < shape.head_dim; ++d) out[d] += weights[i] * query.reads.values[i][d];
  }
  return out;
}

Values AttentionProblem::NaiveResult(int64_t without) const {
  Values result(step.num_tokens() * out_width());
  ForEachQuery([&](const Query& query) {
    const std::vector<double> out = WeightedSum(query, Weights(query, without));
    std::copy(out.begin(), out.end(),
              result.begin() + query.result(shape.q_heads) * shape.head_dim);
  });
  return result;
}

Values AttentionProblem::NaiveLse(int64_t without) const {
  Values result(step.num_tokens() * int64_t{shape.q_heads});
  ForEachQuery([&](const Query& query) {
    const std::vector<double> scores = Scores(query, without);
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (const double score : scores) sum += std::exp(score - max);
    result[query.result(shape.q_heads)] = static_cast<float>(max + std::log(sum));
  });
  return result;
}

// Where queries and keys are rounded to `type` after rotation, a score changes by that share of
// what its dot product sums.
std::vector<double> AttentionProblem::WeightErrors(const Query& query, DType type) const {
  const std::vector<double> rotated = RotatedQuery(query, 0);
  double key_norm = 0.0;
  for (int64_t i = 0; i < query.num_read; ++i) {
    key_norm = std::max(key_norm, Norm(query.reads.keys[i]));
  }
  const double f32 =
      WeightError(scale * Norm(rotated) * key_norm, shape.head_dim, query.num_read, type);
  std::vector<double> errors(query.num_read, f32);
  if (type == DType::kF32) return errors;
  const double rounding = Gamma(1 + KeyRoundings(cache.shape.type), type);
  const std::vector<double> norms = PairNorms(rotated);
  for (int64_t i = 0; i < query.num_read; ++i) {
    const double summed =
        std::inner_product(norms.begin(), norms.end(), query.reads.pair_norms[i].begin(), 0.0);
    const double score = rounding * scale * summed;
    errors[i] = std::expm1(score) + f32 * std::exp(score);
  }
  return errors;
}

// Weights w_i that sum to 1 are off by shares e_i, then rounded by shares r at most, and both their
// sum and that of products rounds by a share s. Since sum w_i (v_i - out) is 0, the result is off
// by no more than
//   sum w_i (e_i |v_i - out| + (1 + e_i) (r max(|v_i|, |v_i - out|) + s (1 + r) (|v_i| + |out|)))
// over the least that the sum of weights may be.
std::vector<double> AttentionProblem::Bound(DType type) const {
  const double r = type == DType::kF32 ? 0.0 : Gamma(1 + ValueRoundings(cache.shape.type), type);
  std::vector<double> bound(step.num_tokens() * out_width());
  ForEachQuery([&](const Query& query) {
    const std::vector<double> weights = Weights(query, -1);
    const std::vector<double> out = WeightedSum(query, weights);
    const std::vector<double> e = WeightErrors(query, type);
    const double s = SumError(query.num_read + 4, type);
    const double least =
        (1.0 - std::inner_product(e.begin(), e.end(), weights.begin(), 0.0)) * (1 - r) * (1 - s);
    double* to = bound.data() + query.result(shape.q_heads) * shape.head_dim;
    for (int64_t i = 0; i < query.num_read; ++i) {
      for (int32_t d = 0; d < shape.head_dim; ++d) {
        const double v = std::abs(query.reads.values[i][d]);
        const double away = std::abs(query.reads.values[i][d] - out[d]);
        const double rounded = r * std::max(v, away) + s * (1 + r) * (v + std::abs(out[d]));
        to[d] += weights[i] * (e[i] * away + (1 + e[i]) * rounded) / least;
      }
    }
    for (int32_t d = 0; d < shape.head_dim; ++d) {
      to[d] += RoundingError(type, std::abs(out[d]) + to[d]);
    }
  });
  return bound;
}

// The largest score and the sum of weights relative to it may both be rounded; of the sum, at most
// the number of keys, a logarithm is taken.
std::vector<double> AttentionProblem::LseBound(DType type) const {
  const double r = type == DType::kF32 ? 0.0 : UnitRoundoff(type);
  std::vector<double> bound(step.num_tokens() * int64_t{shape.q_heads});
  ForEachQuery([&](const Query& query) {
    const std::vector<double> scores = Scores(query, -1);
    const std::vector<double> weights = Weights(query, -1);
    const std::vector<double> e = WeightErrors(query, type);
    const double error = std::inner_product(e.begin(), e.end(), weights.begin(), 0.0) + r +
                         SumError(query.num_read + 2, type);
    const double log_keys = std::log(static_cast<double>(query.num_read));
    const double largest = std::abs(*std::max_element(scores.begin(), scores.end()));
    bound[query.result(shape.q_heads)] =
        -std::log1p(-error) + Gamma(kExpRoundings + 1) * log_keys + Gamma(2) * (largest + log_keys);
  });
  return bound;
}

}  // namespace everlong
