#include "tests/kernels/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace everlong {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double Norm(const Values& x) {
  double squares = 0.0;
  for (const float v : x) squares += static_cast<double>(v) * v;
  return std::sqrt(squares);
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

// The positions of a query and of a key of its block, as the rotary embedding sees them. The key is
// the `index`th of `num_read`; the last one is the query's own.
struct Seen {
  int64_t query;
  int64_t key;
};
Seen SeenPositions(const QueryBlock& block, int64_t query, int64_t key, int64_t index,
                   int64_t num_read) {
  switch (block.positions) {
    case Positions::kTrue:
      return {query, key};
    case Positions::kStreaming:
      return {num_read - 1, index};
    case Positions::kClipped:
      return key >= block.window_begin ? Seen{query, key} : Seen{block.clip_distance, 0};
  }
  return {0, 0};
}

}  // namespace

std::string ShapeName(const AttentionShape& shape) {
  std::string name = "q";
  name.append(std::to_string(shape.q_heads)).append("kv").append(std::to_string(shape.kv_heads));
  return name.append("d").append(std::to_string(shape.head_dim));
}

std::vector<float> InverseFrequencies(int32_t head_dim, double frequency) {
  std::vector<float> inv_freq(head_dim / 2);
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / head_dim;
    inv_freq[i] = static_cast<float>(frequency * std::pow(10000.0, exponent));
  }
  return inv_freq;
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

AttentionProblem AttentionProblem::Sparse(const AttentionShape& shape, DType kv_type,
                                          DType activation_type) {
  AttentionProblem problem(
      shape, kv_type, activation_type,
      {{200, 1}, {331, 1}, {0, 150}, {448, 64}, {3, 1}, {130, 70}, {520, 1}, {260, 5}});
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

AttentionArgs AttentionProblem::Place(Device& device) const {
  AttentionArgs args = {
      .cache = cache.shape,
      .selection = selection.Place(device),
      .rope = {.inv_freq = shape.rotate ? inv_freq.data() : nullptr, .scale = shape.rope_scale},
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

template <class Visit>
void AttentionProblem::ForEachQuery(const Visit& visit) const {
  for (const QueryBlock& block : step.blocks) {
    for (int32_t row = block.first_row; row < block.first_row + block.num_rows; ++row) {
      for (int32_t head = 0; head < shape.q_heads; ++head) visit(block, row, head);
    }
  }
}

Values AttentionProblem::NaiveResult(int64_t without) const {
  Values result(step.num_tokens() * out_width());
  ForEachQuery([&](const QueryBlock& block, int32_t row, int32_t head) {
    const std::vector<double> out = NaiveRow(block, row, head, without);
    std::copy(out.begin(), out.end(),
              result.begin() + row * out_width() + int64_t{head} * shape.head_dim);
  });
  return result;
}

Values AttentionProblem::NaiveLse(int64_t without) const {
  Values result(step.num_tokens() * int64_t{shape.q_heads});
  ForEachQuery([&](const QueryBlock& block, int32_t row, int32_t head) {
    const std::vector<double> scores = NaiveScores(block, row, head, without);
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (const double score : scores) sum += std::exp(score - max);
    result[row * shape.q_heads + head] = static_cast<float>(max + std::log(sum));
  });
  return result;
}

std::vector<double> AttentionProblem::NaiveScores(const QueryBlock& block, int32_t row,
                                                  int32_t head, int64_t without) const {
  const int64_t dim = shape.head_dim;
  const auto rotated = [&](const Values& x, int64_t seen_position) {
    std::vector<double> out(x.begin(), x.end());
    for (int64_t i = 0; shape.rotate && i < dim / 2; ++i) {
      const double angle = static_cast<double>(seen_position) * inv_freq[i];
      out[i] = (x[i] * std::cos(angle) - x[i + dim / 2] * std::sin(angle)) * shape.rope_scale;
      out[i + dim / 2] =
          (x[i + dim / 2] * std::cos(angle) + x[i] * std::sin(angle)) * shape.rope_scale;
    }
    return out;
  };
  const auto begin = q.begin() + row * out_width() + head * dim;
  const Values query(begin, begin + dim);
  const std::vector<int64_t> read = ReadPositions(step, block, row, Selected(block, KvHead(head)));
  const auto num_read = static_cast<int64_t>(read.size());

  std::vector<double> scores(read.size());
  std::vector<double> a;
  int64_t turned_to = -1;
  for (int64_t i = 0; i < num_read; ++i) {
    const Seen seen =
        SeenPositions(block, step.position(block.sequence, row), read[i], i, num_read);
    if (seen.query != turned_to) a = rotated(query, turned_to = seen.query);
    const std::vector<double> b =
        rotated(cache.At(KeyByte(block.sequence, read[i], KvHead(head))), seen.key);
    for (int64_t d = 0; d < dim; ++d) scores[i] += a[d] * b[d] * scale;
    if (read[i] == without) scores[i] = -INFINITY;
  }
  return scores;
}

std::vector<double> AttentionProblem::NaiveRow(const QueryBlock& block, int32_t row, int32_t head,
                                               int64_t without) const {
  const std::vector<int64_t> read = ReadPositions(step, block, row, Selected(block, KvHead(head)));
  std::vector<double> weights = NaiveScores(block, row, head, without);
  const double max = *std::max_element(weights.begin(), weights.end());
  double total = 0.0;
  for (double& weight : weights) total += weight = std::exp(weight - max);
  std::vector<double> out(shape.head_dim);
  for (size_t i = 0; i < read.size(); ++i) {
    const Values value =
        cache.At(KeyByte(block.sequence, read[i], KvHead(head)) + cache.ValueOffset());
    for (int32_t d = 0; d < shape.head_dim; ++d) out[d] += weights[i] / total * value[d];
  }
  return out;
}

// With it the result of attention is the mean magnitude of what is summed.
AttentionProblem AttentionProblem::OfMagnitudes() const {
  AttentionProblem problem = *this;
  for (int32_t s = 0; s < step.num_sequences(); ++s) {
    for (int64_t p = 0; p < step.length(s); ++p) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t byte = KeyByte(s, p, h) + cache.ValueOffset();
        Values value = cache.At(byte);
        for (float& v : value) v = std::abs(v);
        problem.cache.Set(byte, value);
      }
    }
  }
  return problem;
}

// Weights are off by WeightError, and a sum over the keys rounds once a key.
std::vector<double> AttentionProblem::SumErrors() const {
  std::vector<double> errors(step.num_tokens() * int64_t{shape.q_heads});
  for (const QueryBlock& block : step.blocks) {
    for (int32_t head = 0; head < shape.q_heads; ++head) {
      const int32_t last_row = block.first_row + block.num_rows - 1;
      const std::vector<int64_t> read =
          ReadPositions(step, block, last_row, Selected(block, KvHead(head)));
      double key_norm = 0.0;
      for (const int64_t p : read) {
        key_norm = std::max(key_norm, Norm(cache.At(KeyByte(block.sequence, p, KvHead(head)))));
      }
      for (int32_t row = block.first_row; row <= last_row; ++row) {
        const int64_t first = row * out_width() + int64_t{head} * shape.head_dim;
        const Values query(q.begin() + first, q.begin() + first + shape.head_dim);
        const double score = scale * shape.rope_scale * shape.rope_scale * Norm(query) * key_norm;
        const int64_t keys = static_cast<int64_t>(read.size()) - (last_row - row);
        errors[row * shape.q_heads + head] =
            WeightError(score, shape.head_dim, keys) + Gamma(keys + 2);
      }
    }
  }
  return errors;
}

// Numerator and denominator may be off in opposite directions.
std::vector<double> AttentionProblem::Bound(Device& reference, DType type) const {
  const Values magnitudes = OfMagnitudes().Run(reference);
  const std::vector<double> errors = SumErrors();
  std::vector<double> bound(magnitudes.size());
  for (size_t i = 0; i < bound.size(); ++i) {
    bound[i] = 2 * errors[i / shape.head_dim] * magnitudes[i] + RoundingError(type, magnitudes[i]);
  }
  return bound;
}

// The largest score and the sum of weights relative to it may both be rounded; of the sum, at most
// the number of keys, a logarithm is taken.
std::vector<double> AttentionProblem::LseBound(const Values& lse) const {
  std::vector<double> bound = SumErrors();
  ForEachQuery([&](const QueryBlock& block, int32_t row, int32_t head) {
    const size_t i = row * shape.q_heads + head;
    const double log_keys = std::log(
        static_cast<double>(ReadPositions(step, block, row, Selected(block, KvHead(head))).size()));
    bound[i] = -std::log1p(-bound[i]) + Gamma(kExpRoundings + 1) * log_keys +
               Gamma(1) * (std::abs(lse[i]) + log_keys);
  });
  return bound;
}

}  // namespace everlong
