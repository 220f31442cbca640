#include "tests/kernels/sieve_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace everlong {

SieveOracle::SieveOracle(const SelectProblem& problem, const QueryBlock& block, int32_t first_head,
                         std::vector<std::vector<std::vector<double>>> rows)
    : first_block_(block.num_sinks / 8), first_page_(block.num_sinks / 64) {
  const int64_t end_page = (block.window_begin + 63) / 64;
  sieve_ = SieveOf(problem.selects[block.select], end_page - first_page_);
  promises_.assign(end_page - first_page_, -std::numeric_limits<double>::infinity());
  for (size_t page = 0; page < num_pages(); ++page) {
    const auto position = (first_page_ + static_cast<int64_t>(page)) * 64;
    const int32_t id = problem.step.page(block.sequence, position);
    for (size_t head = 0; head < rows.size(); ++head) {
      const auto ranges =
          problem.index.RangesOf(problem.layer, id, first_head + static_cast<int64_t>(head));
      double magnitudes = 0.0;
      for (size_t i = 0; i < ranges.lows.size(); ++i) {
        magnitudes += std::max(std::abs(ranges.lows[i]), std::abs(ranges.highs[i]));
      }
      largest_sum_ = std::max(largest_sum_, magnitudes);
      for (const std::vector<double>& row : rows[head]) {
        double sum = 0.0;
        for (size_t i = 0; i < row.size(); ++i) {
          sum += std::max(row[i] * ranges.lows[i], row[i] * ranges.highs[i]);
          largest_element_ = std::max(largest_element_, std::abs(row[i]));
        }
        promises_[page] = std::max(promises_[page], sum);
      }
    }
  }
}

size_t SieveOracle::PageOf(size_t candidate) const {
  return (first_block_ + candidate) / 8 - first_page_;
}

// Best first, lower ones first among equals.
std::vector<int32_t> SieveOracle::OfGroup(int32_t group) const {
  std::vector<int32_t> pages;
  for (size_t i = group; i < num_pages(); i += sieve_.num_groups) {
    pages.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(pages.begin(), pages.end(),
                   [&](int32_t a, int32_t b) { return promises_[a] > promises_[b]; });
  return pages;
}

SieveOracle::Outcome SieveOracle::Expected() const {
  Outcome outcome = {.scanned = std::vector<bool>(num_pages(), sieve_.num_groups == 0),
                     .least_gap = std::numeric_limits<double>::infinity()};
  for (int32_t group = 0; group < sieve_.num_groups; ++group) {
    const std::vector<int32_t> pages = OfGroup(group);
    for (int32_t i = 0; i < sieve_.keep; ++i) outcome.scanned[pages[i]] = true;
    const double gap = promises_[pages[sieve_.keep - 1]] - promises_[pages[sieve_.keep]];
    if (gap > 0.0) outcome.least_gap = std::min(outcome.least_gap, gap);
  }
  return outcome;
}

SieveOracle::Range SieveOracle::Possible(double error) const {
  error += largest_element_ / 127 / 2 * largest_sum_;
  Range range = {.surely = std::vector<bool>(num_pages(), sieve_.num_groups == 0)};
  range.possibly = range.surely;
  for (int32_t group = 0; group < sieve_.num_groups; ++group) {
    const std::vector<int32_t> pages = OfGroup(group);
    const double last = promises_[pages[sieve_.keep - 1]];
    const double next = promises_[pages[sieve_.keep]];
    for (const int32_t page : pages) {
      range.surely[page] = promises_[page] > next + 2 * error;
      range.possibly[page] = promises_[page] >= last - 2 * error;
    }
  }
  return range;
}

}  // namespace everlong
