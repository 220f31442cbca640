// Attention over a random cache, its exact result and the error that a backend may make.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "tests/kernels/device.h"
#include "tests/kernels/selection.h"
#include "tests/kernels/step.h"

namespace everlong {

struct AttentionShape {
  int32_t q_heads = 1;
  int32_t kv_heads = 1;
  int32_t head_dim = 8;
  bool rotate = true;
  float rope_scale = 1.0f;
  // Rotation is by position times this times theta^(-2 i / head_dim): large, it stands for
  // positions that a test cannot afford.
  double frequency = 1.0;
};

std::string ShapeName(const AttentionShape& shape);

// [head_dim / 2]; stays, as Rope asks.
const float* InverseFrequencies(int32_t head_dim, double frequency);

// A step whose keys and values are all stored, and its queries. Keys and values that nothing reads
// are NaN, and so is what lies between queries.
struct AttentionProblem {
  static constexpr int32_t kLayers = 2;
  static constexpr int32_t kLayer = 1;

  static AttentionProblem Dense(const AttentionShape& shape, DType kv_type, DType activation_type,
                                const std::vector<SequenceShape>& sequences = MixedShapes());
  // Of MakeSparse.
  static AttentionProblem Sparse(const AttentionShape& shape, DType kv_type, DType activation_type,
                                 const std::vector<SequenceShape>& sequences = SparseShapes());
  static std::vector<SequenceShape> SparseShapes();

  int64_t out_width() const { return int64_t{shape.q_heads} * shape.head_dim; }
  int32_t KvHead(int32_t head) const { return head / (shape.q_heads / shape.kv_heads); }
  // What a block's slot holds.
  const std::vector<int32_t>& Selected(const QueryBlock& block, int32_t kv_head) const;
  int64_t KeyByte(int32_t sequence, int64_t position, int32_t kv_head) const;

  // Makes a stored value, of position p, `mark` in dimension p % head_dim and 0 in all others.
  void MarkValues(float mark);

  // Cache and selection on the device, until its FreePlaced.
  AttentionArgs Place(Device& device) const;
  // Attention of `part`, whose queries begin at row `first_row` of q. Rows of no block are 0.
  Values Run(Device& device, AttentionArgs placed, const Step& part, int32_t first_row,
             Values* lse = nullptr) const;
  // Of all queries.
  Values Run(Device& device, Values* lse = nullptr) const;
  Values RunLse(Device& device) const;

  // The definition: all scores of a query in memory at once, in double. `without` >= 0 leaves out
  // that position.
  Values NaiveResult(int64_t without = -1) const;
  Values NaiveLse(int64_t without = -1) const;

  // How far results may be off that are computed in f32 from what is rounded to `type`, the type of
  // activations: rotated queries and keys, weights and the results themselves.
  std::vector<double> Bound(DType type) const;
  std::vector<double> LseBound(DType type) const;

  std::mt19937 random{1};
  AttentionShape shape;
  Step step;
  HostCache cache;
  HostSelection selection;
  Values q;  // [num_tokens][q_heads * head_dim]
  const float* inv_freq;
  float scale;

 private:
  // What the queries of a block read of one KV head, in order. A row reads all but what follows it.
  struct Reads {
    std::vector<int64_t> positions;
    std::vector<std::vector<double>> keys;        // rotated
    std::vector<std::vector<double>> pair_norms;  // of keys
    std::vector<Values> values;
  };
  struct Query {
    const QueryBlock& block;
    const Reads& reads;
    int64_t num_read;
    int32_t row;
    int32_t head;

    int64_t result(int32_t q_heads) const { return int64_t{row} * q_heads + head; }
  };

  AttentionProblem(const AttentionShape& shape, DType kv_type, DType activation_type,
                   const std::vector<SequenceShape>& sequences);

  void ForgetWhatNothingReads();
  Reads ReadsOf(const QueryBlock& block, int32_t kv_head) const;
  // Calls visit(query) for every query.
  template <class Visit>
  void ForEachQuery(const Visit& visit) const;
  std::vector<double> Rotated(const Values& x, int64_t seen_position) const;
  // As the key that the query reads as its `i`th sees it.
  std::vector<double> RotatedQuery(const Query& query, int64_t i) const;
  // Of what a query reads.
  std::vector<double> Scores(const Query& query, int64_t without) const;
  std::vector<double> Weights(const Query& query, int64_t without) const;
  // The share by which each weight may be off before it is rounded to `type`.
  std::vector<double> WeightErrors(const Query& query, DType type) const;
  std::vector<double> WeightedSum(const Query& query, const std::vector<double>& weights) const;
};

}  // namespace everlong
