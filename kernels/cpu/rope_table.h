// Cosines and sines for rotary embedding. A position is a page and an offset inside it, and so is
// its rotation: R(64 page + offset) = R(64 page) R(offset). Every angle is computed in double from
// its integer, so the tables are as exact at a million tokens as at ten, and a rotation depends on
// the position alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/args.h"
#include "kernels/cpu/aligned_floats.h"

namespace everlong::cpu {

class RopeTable {
 public:
  // Makes the table fit for `rope` and pages below `num_pages`; keeps what it has where it can.
  void Prepare(const Rope& rope, int32_t head_dim, int64_t num_pages);

  // Frequencies in a row of the table: head_dim / 2, padded with zeros to a multiple of 16.
  int64_t width() const { return width_; }

  const float* PageCos(int64_t page) const { return pages_.data() + page * 2 * width_; }
  const float* PageSin(int64_t page) const { return PageCos(page) + width_; }
  const float* OffsetCos(int64_t offset) const { return offsets_.data() + offset * 2 * width_; }
  const float* OffsetSin(int64_t offset) const { return OffsetCos(offset) + width_; }
  // [width][kPageTokens]: of one frequency at all offsets.
  const float* CosByFrequency() const { return by_frequency_.data(); }
  const float* SinByFrequency() const { return by_frequency_.data() + width_ * kPageTokens; }

 private:
  void MakeOffsets();
  void AppendRow(int64_t position, std::vector<float>& rows) const;

  int64_t width_ = 0;
  std::vector<float> inv_freq_;
  std::vector<float> offsets_;  // [kPageTokens][2][width]
  std::vector<float> pages_;    // [pages][2][width]
  AlignedFloats by_frequency_;  // [2][width][kPageTokens]
};

}  // namespace everlong::cpu
