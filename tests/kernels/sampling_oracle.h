// Rows to sample, and an oracle of their outcome that sorts the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/args.h"
#include "tests/kernels/device.h"
#include "tests/kernels/numerics.h"

namespace everlong {

struct RowResult {
  int32_t token;
  float logprob;
  std::vector<int32_t> top_tokens;
  Values top_logprobs;
};

// Rows of logits with their parameters.
struct SampleBatch {
  explicit SampleBatch(int32_t vocab) : vocab(vocab) {}

  void Add(const Values& row, SampleParams row_params, const std::vector<TokenAdjust>& row_adjusts);

  std::vector<RowResult> Run(Device& device) const { return Run(device, 0, params.size()); }

  std::vector<RowResult> Run(Device& device, size_t first, size_t rows) const;

  Values Row(size_t row) const {
    const auto begin = logits.begin() + static_cast<ptrdiff_t>(row) * vocab;
    return {begin, begin + vocab};
  }

  int32_t vocab;
  Values logits;
  std::vector<SampleParams> params;
  std::vector<TokenAdjust> adjusts;
};

// Tokens by falling logit, lower ids first among equals.
std::vector<int32_t> Ranking(const Values& logits);

Values AdjustedRow(const SampleBatch& batch, size_t row);

// Whether `token` is a right outcome for adjusted logits.
bool IsRightOutcome(const Values& logits, const SampleParams& params, int32_t token);

// The log probabilities of `result` are those of log softmax, and its top tokens the most likely.
void ExpectReportsModelProbabilities(const Values& logits, const SampleParams& params,
                                     const RowResult& result);

}  // namespace everlong
