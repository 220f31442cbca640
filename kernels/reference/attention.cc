#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/step.h"

namespace everlong::reference {
namespace {

// Positions as the rotary embedding sees them.
class Numbering {
 public:
  Numbering(const QueryBlock& block, size_t num_selected)
      : block_(block),
        window_number_(block.num_sinks + static_cast<int64_t>(num_selected) * kBlockTokens) {}

  // Of the query at `position`, as keys of the window see it, or those `far` from it.
  int64_t Query(int64_t position, bool far) const {
    switch (block_.positions) {
      case Positions::kTrue:
        return position;
      case Positions::kStreaming:
        return window_number_ + position - block_.window_begin;
      case Positions::kClipped:
        return far ? block_.clip_distance : position - block_.window_begin;
    }
    return 0;
  }

  // Of the key at `position`, the `index`th of those that are read.
  int64_t Key(int64_t position, int64_t index, bool far) const {
    switch (block_.positions) {
      case Positions::kTrue:
        return position;
      case Positions::kStreaming:
        return index;
      case Positions::kClipped:
        return far ? 0 : position - block_.window_begin;
    }
    return 0;
  }

 private:
  const QueryBlock& block_;
  int64_t window_number_;
};

// Calls visit(position, index, far) for all keys of a query block before `end`, in token order.
template <typename Visit>
void ForEachKey(const QueryBlock& block, std::span<const int32_t> selected, int64_t end,
                const Visit& visit) {
  int64_t index = 0;
  for (int64_t p = 0; p < block.num_sinks; ++p) visit(p, index++, true);
  for (const int32_t b : selected) {
    for (int64_t i = 0; i < kBlockTokens; ++i) visit(int64_t{b} * kBlockTokens + i, index++, true);
  }
  for (int64_t p = block.window_begin; p < end; ++p) visit(p, index++, false);
}

// One query's softmax over keys that come one at a time (Milakov, Gimelshein: Online normalizer
// calculation for softmax, 2018): weights are kept relative to the largest score so far.
class Query {
 public:
  // `lse` may be null.
  Query(const float* q, int64_t head_dim, int64_t position, float* out, float* lse)
      : near(q, q + head_dim),
        far(near),
        position(position),
        out_(out),
        lse_(lse),
        weighted_(head_dim) {}

  void Fold(double score, std::span<const double> value) {
    const double max = std::max(max_score_, score);
    const double keep = std::exp(max_score_ - max);
    const double weight = std::exp(score - max);
    for (size_t i = 0; i < value.size(); ++i) {
      weighted_[i] = weighted_[i] * keep + weight * value[i];
    }
    total_weight_ = total_weight_ * keep + weight;
    max_score_ = max;
  }

  void Finish() const {
    for (size_t i = 0; i < weighted_.size(); ++i) {
      out_[i] = static_cast<float>(weighted_[i] / total_weight_);
    }
    if (lse_ != nullptr) *lse_ = static_cast<float>(max_score_ + std::log(total_weight_));
  }

  std::vector<double> near;  // rotated for keys of the window
  std::vector<double> far;   // rotated for all others
  int64_t position;

 private:
  float* out_;
  float* lse_;
  std::vector<double> weighted_;
  double max_score_ = -std::numeric_limits<double>::infinity();
  double total_weight_ = 0.0;
};

std::vector<Query> BlockQueries(const AttentionArgs& args, const StepSequence& sequence,
                                const QueryBlock& block, const Numbering& numbering,
                                int64_t kv_head) {
  const int64_t dim = args.cache.head_dim;
  const int64_t group = args.q_heads / args.cache.kv_heads;
  std::vector<Query> queries;  // [num_rows][group]
  for (int64_t row = block.first_row; row < block.first_row + block.num_rows; ++row) {
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const int64_t result = row * args.q_heads + head;
      Query& query = queries.emplace_back(
          static_cast<const float*>(args.q) + row * args.q_stride + head * dim, dim,
          sequence.Position(row), static_cast<float*>(args.out) + result * dim,
          args.lse == nullptr ? nullptr : args.lse + result);
      if (!args.rotate) continue;
      Rotate(query.near, numbering.Query(query.position, false), args.rope);
      Rotate(query.far, numbering.Query(query.position, true), args.rope);
    }
  }
  return queries;
}

}  // namespace

// Each key is rotated once and folded into every query that sees it, in token order, so memory does
// not grow with the context.
void Attend(const AttentionArgs& args, const Step& step, const QueryBlock& block, int64_t kv_head) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  const StepSequence& sequence = step.sequences[block.sequence];
  std::span<const int32_t> selected;
  if (block.slot >= 0) selected = SelectedBlocks(args.selection, args.layer, block.slot, kv_head);
  const Numbering numbering(block, selected.size());
  std::vector<Query> queries = BlockQueries(args, sequence, block, numbering, kv_head);

  std::vector<double> key(dim);
  std::vector<double> value(dim);
  const int64_t end = sequence.Position(block.first_row + block.num_rows);
  ForEachKey(block, selected, end, [&](int64_t position, int64_t index, bool far) {
    sequence.Key(cache, args.layer, kv_head, position).Read(key);
    sequence.Value(cache, args.layer, kv_head, position).Read(value);
    if (args.rotate) Rotate(key, numbering.Key(position, index, far), args.rope);
    for (Query& query : queries) {
      if (query.position < position) continue;
      query.Fold(Dot(far ? query.far : query.near, key) * args.scale, value);
    }
  });
  for (const Query& query : queries) query.Finish();
}

}  // namespace everlong::reference
