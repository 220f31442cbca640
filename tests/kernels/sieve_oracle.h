// Which pages a scan with a sieve must read, by SieveOf's comment in args.h.
#pragma once

#include <vector>

#include "tests/kernels/select_oracle.h"

namespace everlong {

// Of one query block, and of the KV heads that choose together.
class SieveOracle {
 public:
  // rows[i]: those of KV head first_head + i, as they see every key.
  SieveOracle(const SelectProblem& problem, const QueryBlock& block, int32_t first_head,
              std::vector<std::vector<std::vector<double>>> rows);

  // Of a candidate, in the lists of pages below.
  size_t PageOf(size_t candidate) const;

  // The pages that are scanned, and how far apart two promises are that a choice compared.
  struct Outcome {
    std::vector<bool> scanned;
    double least_gap;
  };
  Outcome Expected() const;

  // Those that are scanned surely, or possibly, where query rows are rounded to 127ths of their
  // largest element, and `error` comes on top of it.
  struct Range {
    std::vector<bool> surely;
    std::vector<bool> possibly;
  };
  Range Possible(double error) const;

 private:
  size_t num_pages() const { return promises_.size(); }
  std::vector<int32_t> OfGroup(int32_t group) const;

  int64_t first_block_;
  int64_t first_page_;
  Sieve sieve_;
  std::vector<double> promises_;
  double largest_element_ = 0.0;
  double largest_sum_ = 0.0;  // of the magnitudes that a page's ranges reach
};

}  // namespace everlong
