#include "kernels/cpu/rope_table.h"

#include <algorithm>
#include <cmath>

namespace everlong::cpu {

void RopeTable::Prepare(const Rope& rope, int32_t head_dim, int64_t num_pages) {
  const std::span<const float> inv_freq(rope.inv_freq, head_dim / 2);
  if (!std::equal(inv_freq.begin(), inv_freq.end(), inv_freq_.begin(), inv_freq_.end())) {
    inv_freq_.assign(inv_freq.begin(), inv_freq.end());
    width_ = (int64_t{head_dim} / 2 + 15) / 16 * 16;
    pages_.clear();
    MakeOffsets();
  }
  const auto made = static_cast<int64_t>(pages_.size()) / (2 * width_);
  if (made >= num_pages) return;
  for (int64_t page = made; page < std::max(num_pages, 2 * made); ++page) {
    AppendRow(page * kPageTokens, pages_);
  }
}

void RopeTable::MakeOffsets() {
  offsets_.clear();
  by_frequency_.Reserve(2 * width_ * kPageTokens);
  for (int64_t offset = 0; offset < kPageTokens; ++offset) {
    AppendRow(offset, offsets_);
    for (int64_t i = 0; i < 2 * width_; ++i) {
      by_frequency_.data()[i * kPageTokens + offset] = OffsetCos(offset)[i];
    }
  }
}

void RopeTable::AppendRow(int64_t position, std::vector<float>& rows) const {
  const size_t begin = rows.size();
  rows.resize(begin + 2 * width_, 0.0f);
  for (size_t i = 0; i < inv_freq_.size(); ++i) {
    const double angle = static_cast<double>(position) * inv_freq_[i];
    rows[begin + i] = static_cast<float>(std::cos(angle));
    rows[begin + width_ + i] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace everlong::cpu
