#include "tests/kernels/select_oracle.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "tests/kernels/sieve_oracle.h"

namespace everlong {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

using Vector = std::vector<double>;

double Dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// Numbers by falling score, lower ones first among equals.
std::vector<int32_t> Ranking(const Vector& scores) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  return order;
}

// From 0; -infinity where there are fewer.
double NthLargest(Vector scores, size_t n) {
  if (n >= scores.size()) return kNever;
  std::nth_element(scores.begin(), scores.begin() + static_cast<ptrdiff_t>(n), scores.end(),
                   std::greater<>());
  return scores[n];
}

// Rows see a key from this far wherever they stand.
auto Distance(int64_t distance) {
  return [distance](int64_t) { return distance; };
}

// What decides about one query block and KV head.
class BlockOracle {
 public:
  BlockOracle(const SelectProblem& problem, const QueryBlock& block, int32_t kv_head)
      : problem_(problem),
        block_(block),
        params_(problem.selects[block.select]),
        first_head_(params_.all_heads ? 0 : kv_head),
        end_head_(params_.all_heads ? problem.shape.kv_heads : kv_head + 1) {}

  int32_t first_block() const { return block_.num_sinks / 8; }

  // Best tokens of all candidates, from the index or from stored keys.
  Vector CandidateScores(bool stored) const {
    Vector scores;
    for (int64_t b = first_block(); b < block_.window_begin / 8; ++b) {
      scores.push_back(BlockScore(b, stored));
    }
    return scores;
  }

  Vector Dilated(const Vector& scores) const {
    Vector dilated = scores;
    const auto n = static_cast<int32_t>(scores.size());
    for (int32_t i = 0; i < n; ++i) {
      for (int32_t j = 0; j < n; ++j) {
        if (std::abs(i - j) <= params_.dilation) dilated[i] = std::max(dilated[i], scores[j]);
      }
    }
    return dilated;
  }

  std::vector<int32_t> Scan() const {
    Vector scores = CandidateScores(false);
    const SieveOracle sifting = sieve();
    const SieveOracle::Outcome sifted = sifting.Expected();
    least_gap_ = std::min(least_gap_, sifted.least_gap);
    for (size_t i = 0; i < scores.size(); ++i) {
      if (!sifted.scanned[sifting.PageOf(i)]) scores[i] = kNever;
    }
    if (params_.rerank > 1) {
      const Vector stored = CandidateScores(true);
      Vector reranked(scores.size(), kNever);
      for (const int32_t i :
           Best(scores, static_cast<size_t>(params_.keep_blocks) * params_.rerank)) {
        reranked[i] = stored[i];
      }
      scores = reranked;
    }
    std::vector<int32_t> blocks = Best(Dilated(scores), params_.keep_blocks);
    for (int32_t& b : blocks) b += first_block();
    return blocks;
  }

  SieveOracle sieve() const {
    std::vector<std::vector<Vector>> rows;
    for (int32_t head = first_head_; head < end_head_; ++head) rows.push_back(RotatedRows(head));
    return SieveOracle(problem_, block_, first_head_, std::move(rows));
  }

  // How far rounding a row to 127ths of its largest element may take the score of an indexed key.
  double RoundedRowError() const {
    double difference = 0.0;
    for (int32_t head = first_head_; head < end_head_; ++head) {
      for (int64_t p = block_.num_sinks; p < block_.window_begin; ++p) {
        const int32_t page = problem_.step.page(block_.sequence, p);
        const Vector key = problem_.index.Key(problem_.layer, page, head, p % 64);
        const Values mean = problem_.index.Mean(problem_.layer, page, head);
        double sum = 0.0;
        for (size_t i = 0; i < key.size(); ++i) sum += std::abs(key[i] - mean[i]);
        difference = std::max(difference, sum);
      }
    }
    return LargestElement() / 127 / 2 * difference;
  }

  // The chunks, by their first tokens, that stage `s` keeps of those that `from` is cut into.
  std::vector<int64_t> Stage(int32_t s, const std::vector<int64_t>& from) const {
    const HipStage& stage = params_.stages[s];
    Vector scores;
    for (size_t i = 0; i < from.size(); ++i) {
      scores.push_back(stage.every_key ? EveryKeyScore(from[i], stage)
                                       : GreedyScore(from[i], stage, static_cast<int64_t>(i),
                                                     static_cast<int64_t>(from.size())));
    }
    std::vector<int64_t> kept;
    for (const int32_t i : Best(scores, stage.keep_chunks)) kept.push_back(from[i]);
    return kept;
  }

  double least_gap() const { return least_gap_; }

 private:
  // Of a KV head's group, as they see every key.
  std::vector<Vector> RotatedRows(int32_t head) const {
    std::vector<Vector> rows;
    const int32_t group = problem_.shape.q_heads / problem_.shape.kv_heads;
    for (int32_t q_head = head * group; q_head < (head + 1) * group; ++q_head) {
      for (int32_t row = 0; row < block_.num_rows; ++row) {
        rows.push_back(Rotated(MeanQuery(q_head, row, row + 1), params_.distance));
      }
    }
    return rows;
  }

  double LargestElement() const {
    double element = 0.0;
    for (int32_t head = first_head_; head < end_head_; ++head) {
      for (const Vector& row : RotatedRows(head)) {
        for (const double v : row) element = std::max(element, std::abs(v));
      }
    }
    return element;
  }

  // Numbers of the `count` best scores, ascending.
  std::vector<int32_t> Best(const Vector& scores, size_t count) const {
    std::vector<int32_t> order = Ranking(scores);
    if (count < order.size()) Compare(scores[order[count - 1]], scores[order[count]]);
    order.resize(std::min(order.size(), count));
    std::sort(order.begin(), order.end());
    return order;
  }

  void Compare(double a, double b) const {
    if (a != b) least_gap_ = std::min(least_gap_, std::abs(a - b));
  }

  double BlockScore(int64_t block, bool stored) const {
    double best = kNever;
    for (int64_t p = block * 8; p < block * 8 + 8; ++p) {
      best = std::max(best, KeyScore(p, stored, false, Distance(params_.distance)));
    }
    return best;
  }

  double EveryKeyScore(int64_t begin, const HipStage& stage) const {
    double best = kNever;
    const int64_t end = std::min(begin + stage.chunk_tokens, block_.window_begin);
    for (int64_t p = begin; p < end; ++p) {
      best = std::max(best, KeyScore(p, true, stage.pool_rows, Distance(params_.distance)));
    }
    return best;
  }

  double GreedyScore(int64_t begin, const HipStage& stage, int64_t number, int64_t chunks) const {
    Vector path;
    for (int64_t width = stage.chunk_tokens; width > 1; width /= 2) {
      const double left = Probe(begin + width / 4, stage.pool_rows, 0, number, chunks);
      const double right = Probe(begin + width / 2 + width / 4, stage.pool_rows, 1, number, chunks);
      path.push_back(std::max(left, right));
      if (width > 2) Compare(left, right);
      if (!(left > right) && right != kNever) begin += width / 2;
    }
    return params_.last_probe ? path.back() : *std::max_element(path.begin(), path.end());
  }

  // `place`: 0 of a left probe, 1 of a right one.
  double Probe(int64_t position, bool pooled, int64_t place, int64_t number, int64_t chunks) const {
    if (position >= block_.window_begin) return kNever;
    switch (params_.probes) {
      case ProbePositions::kRelative:
        return KeyScore(position, true, pooled, Distance(params_.distance + 1 - place));
      case ProbePositions::kChunk:
        return KeyScore(position, true, pooled, [&](int64_t own) {
          return std::min(own, chunks + params_.distance) - number;
        });
      case ProbePositions::kNone:
        return KeyScore(position, true, pooled, Distance(0));
    }
    return kNever;
  }

  // The best score of a key, stored or from the index, over heads and rows; `distance` tells how
  // far from the key a row at some position is.
  template <typename DistanceOf>
  double KeyScore(int64_t position, bool stored, bool pooled, const DistanceOf& distance) const {
    double best = kNever;
    const int32_t page = problem_.step.page(block_.sequence, position);
    for (int32_t head = first_head_; head < end_head_; ++head) {
      Vector key;
      if (stored) {
        const Values values =
            problem_.cache.At(problem_.cache.KeyByte(problem_.layer, page, head, position % 64));
        key.assign(values.begin(), values.end());
      } else {
        key = problem_.index.Key(problem_.layer, page, head, position % 64);
      }
      const int32_t group = problem_.shape.q_heads / problem_.shape.kv_heads;
      for (int32_t q_head = head * group; q_head < (head + 1) * group; ++q_head) {
        for (int32_t row = 0; row < block_.num_rows;) {
          const int64_t own = Position(row);
          const int32_t end = pooled ? RowOfPosition(own / 4 * 4 + 4) : row + 1;
          best = std::max(best, Dot(Rotated(MeanQuery(q_head, row, end), distance(own)), key));
          row = end;
        }
      }
    }
    return best;
  }

  int64_t Position(int32_t row) const {
    return problem_.step.position(block_.sequence, block_.first_row + row);
  }

  int32_t RowOfPosition(int64_t position) const {
    return static_cast<int32_t>(std::min<int64_t>(position - Position(0), block_.num_rows));
  }

  Vector MeanQuery(int32_t head, int32_t begin, int32_t end) const {
    const int64_t dim = problem_.shape.head_dim;
    Vector mean(dim);
    for (int32_t row = begin; row < end; ++row) {
      const int64_t from = (int64_t{block_.first_row + row} * problem_.shape.q_heads + head) * dim;
      for (int64_t i = 0; i < dim; ++i) mean[i] += problem_.q[from + i];
    }
    for (double& v : mean) v /= end - begin;
    return mean;
  }

  Vector Rotated(const Vector& x, int64_t distance) const {
    if (!problem_.shape.rotate) return x;
    Vector out = x;
    const size_t half = x.size() / 2;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(distance) * problem_.inv_freq[i];
      const double cos = problem_.quarter_turns ? std::round(std::cos(angle)) : std::cos(angle);
      const double sin = problem_.quarter_turns ? std::round(std::sin(angle)) : std::sin(angle);
      out[i] = (x[i] * cos - x[i + half] * sin) * problem_.shape.rope_scale;
      out[i + half] = (x[i + half] * cos + x[i] * sin) * problem_.shape.rope_scale;
    }
    return out;
  }

  const SelectProblem& problem_;
  const QueryBlock& block_;
  const SelectParams& params_;
  int32_t first_head_;
  int32_t end_head_;
  mutable double least_gap_ = -kNever;
};

// The first tokens of the pieces of `tokens` into which chunks are cut, up to the window.
std::vector<int64_t> Cut(const std::vector<int64_t>& chunks, int64_t length, int64_t piece,
                         int64_t window_begin) {
  std::vector<int64_t> pieces;
  for (const int64_t chunk : chunks) {
    for (int64_t p = chunk; p < chunk + length; p += piece) {
      if (p < window_begin) pieces.push_back(p);
    }
  }
  return pieces;
}

std::vector<int32_t> Blocks(const std::vector<int64_t>& tokens) {
  std::vector<int32_t> blocks;
  for (const int64_t p : tokens) blocks.push_back(static_cast<int32_t>(p / 8));
  return blocks;
}

std::vector<int64_t> Tokens(const std::vector<int32_t>& blocks) {
  std::vector<int64_t> tokens;
  for (const int32_t b : blocks) tokens.push_back(int64_t{b} * 8);
  return tokens;
}

}  // namespace

HostSelection SelectProblem::Run(Device& device) const {
  SelectArgs args = {.cache = cache.shape,
                     .index = index.Place(device),
                     .selection = selection.Place(device),
                     .rope = {.inv_freq = inv_freq, .scale = shape.rope_scale},
                     .q = device.PlaceActivations(q),
                     .q_stride = int64_t{shape.q_heads} * shape.head_dim,
                     .layer = layer,
                     .q_heads = shape.q_heads,
                     .rotate = shape.rotate};
  args.cache.base = device.Place(cache.bytes);
  AttentionPlan plan = {.num_blocks = static_cast<int32_t>(step.blocks.size()),
                        .num_selects = static_cast<int32_t>(selects.size()),
                        .blocks = step.blocks.data(),
                        .selects = selects.data()};
  StepLayout layout = step.Layout();
  layout.plans = &plan;
  device->BeginStep(layout);
  device->Select(args);
  HostSelection after = selection;
  after.Read(device, args.selection);
  return after;
}

SelectProblem::Outcome SelectProblem::Expected() const {
  HostSelection after = selection;
  double least_gap = -kNever;
  for (const QueryBlock& block : step.blocks) {
    if (block.slot < 0) continue;
    const SelectParams& params = selects[block.select];
    const bool scan = params.selector == Selector::kScan;
    const int32_t num_stages = scan ? 1 : params.num_stages;
    for (int32_t head = 0; block.first_stage < num_stages && head < shape.kv_heads; ++head) {
      const BlockOracle oracle(*this, block, head);
      std::vector<int32_t>& chosen = after.List(layer, block.slot, head, kFinalList);
      const int64_t candidates = block.window_begin - block.num_sinks;
      if (candidates <= int64_t{8} * params.keep_blocks) {
        chosen = Blocks(Cut({block.num_sinks}, candidates, 8, block.window_begin));
        continue;
      }
      if (scan) {
        chosen = oracle.Scan();
        least_gap = std::min(least_gap, oracle.least_gap());
        continue;
      }
      std::vector<int64_t> chunks = {block.num_sinks};
      int64_t length = candidates;
      for (int32_t s = 0; s < num_stages; ++s) {
        const int64_t piece = params.stages[s].chunk_tokens;
        if (s >= block.first_stage) {
          chunks = oracle.Stage(s, Cut(chunks, length, piece, block.window_begin));
          if (s + 1 < num_stages) after.List(layer, block.slot, head, s) = Blocks(chunks);
        } else {
          chunks = Tokens(after.List(layer, block.slot, head, s));
        }
        length = piece;
      }
      chosen = Blocks(Cut(chunks, length, 8, block.window_begin));
      least_gap = std::min(least_gap, oracle.least_gap());
    }
  }
  return {after, least_gap};
}

std::vector<SelectProblem::Range> SelectProblem::ScanScores(const QueryBlock& block,
                                                            int32_t kv_head) const {
  const BlockOracle oracle(*this, block, kv_head);
  const SelectParams& params = selects[block.select];
  const double rounding = ScoreError();
  double error = rounding + oracle.RoundedRowError();
  Vector least = oracle.CandidateScores(false);
  Vector most = least;
  const SieveOracle sieve = oracle.sieve();
  const auto [surely, possibly] = sieve.Possible(rounding);
  for (size_t i = 0; i < least.size(); ++i) {
    if (!surely[sieve.PageOf(i)]) least[i] = kNever;
    if (!possibly[sieve.PageOf(i)]) most[i] = kNever;
  }
  if (params.rerank > 1) {
    // Those within the error of the last one that is scored again may or may not be.
    const size_t count = static_cast<size_t>(params.keep_blocks) * params.rerank;
    const double last = NthLargest(least, count - 1);
    const double next = NthLargest(most, count);
    const Vector stored = oracle.CandidateScores(true);
    for (size_t i = 0; i < stored.size(); ++i) {
      least[i] = least[i] > next + 2 * error ? stored[i] : kNever;
      most[i] = most[i] >= last - 2 * error ? stored[i] : kNever;
    }
    error = rounding;
  }
  least = oracle.Dilated(least);
  most = oracle.Dilated(most);
  std::vector<Range> ranges;
  for (size_t i = 0; i < least.size(); ++i) ranges.push_back({least[i] - error, most[i] + error});
  return ranges;
}

// A query rotates as in WeightError of attention; pooling rounds 4 times, decoding a key 8 times
// relative to a norm of at most twice the key's. Where rotated queries are rounded to 16 bits, keys
// are as they are stored but for kF8, whose scales may be multiplied in first.
double SelectProblem::ScoreError() const {
  const int64_t dim = shape.head_dim;
  const auto norm = [dim](const float* x) {
    return std::sqrt(std::inner_product(x, x + dim, x, 0.0));
  };
  double query = 0.0;
  for (size_t i = 0; i < q.size(); i += dim) query = std::max(query, norm(q.data() + i));
  double key = 0.0;
  for (const QueryBlock& block : step.blocks) {
    for (int64_t p = 0; p < step.length(block.sequence); ++p) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        const int32_t page = step.page(block.sequence, p);
        key = std::max(key, norm(cache.At(cache.KeyByte(layer, page, h, p % 64)).data()));
      }
    }
  }
  const double product = query * 2 * key * shape.rope_scale;
  const double error = SumError(dim + 32, activation_type) * product;
  if (activation_type == DType::kF32) return error;
  return error + Gamma(cache.shape.type == DType::kF8 ? 2 : 1, activation_type) * product;
}

}  // namespace everlong
