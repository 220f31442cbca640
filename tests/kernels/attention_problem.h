// Attention over a random cache, its exact result and the error that f32 may make.
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

std::vector<float> InverseFrequencies(int32_t head_dim, double frequency);

// A step whose keys and values are all stored, and its queries. Keys and values that nothing reads
// are NaN, and so is what lies between queries.
struct AttentionProblem {
  static constexpr int32_t kLayers = 2;
  static constexpr int32_t kLayer = 1;

  static AttentionProblem Dense(const AttentionShape& shape, DType kv_type, DType activation_type,
                                const std::vector<SequenceShape>& sequences = MixedShapes());
  // Of MakeSparse.
  static AttentionProblem Sparse(const AttentionShape& shape, DType kv_type, DType activation_type);

  int64_t out_width() const { return int64_t{shape.q_heads} * shape.head_dim; }
  int32_t KvHead(int32_t head) const { return head / (shape.q_heads / shape.kv_heads); }
  // What a block's slot holds.
  const std::vector<int32_t>& Selected(const QueryBlock& block, int32_t kv_head) const;
  int64_t KeyByte(int32_t sequence, int64_t position, int32_t kv_head) const;

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

  // The error bound of every element of a result, rounded to `type`. `reference` runs the same
  // problem with the values' magnitudes.
  std::vector<double> Bound(Device& reference, DType type) const;
  std::vector<double> LseBound(const Values& lse) const;

  std::mt19937 random{1};
  AttentionShape shape;
  Step step;
  HostCache cache;
  HostSelection selection;
  Values q;  // [num_tokens][q_heads * head_dim]
  std::vector<float> inv_freq;
  float scale;

 private:
  AttentionProblem(const AttentionShape& shape, DType kv_type, DType activation_type,
                   const std::vector<SequenceShape>& sequences);

  void ForgetWhatNothingReads();
  AttentionProblem OfMagnitudes() const;
  // Calls visit(block, row, head) for every query.
  template <class Visit>
  void ForEachQuery(const Visit& visit) const;
  // Scores of the positions that a query reads.
  std::vector<double> NaiveScores(const QueryBlock& block, int32_t row, int32_t head,
                                  int64_t without) const;
  std::vector<double> NaiveRow(const QueryBlock& block, int32_t row, int32_t head,
                               int64_t without) const;
  // [num_tokens][q_heads]: the share by which a query's sum of weights may be off.
  std::vector<double> SumErrors() const;
};

}  // namespace everlong
