// Times of two pieces of work in turns, and the bandwidth of reading memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "kernels/host_memory.h"

namespace everlong {

using Work = std::function<void()>;

inline double SecondsOf(const Work& work, int64_t times) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < times; ++i) work();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return took.count() / static_cast<double>(times);
}

// Medians of runs of `a` and `b` in turns, so that whatever else the machine does meets both.
inline std::pair<double, double> MedianSeconds(const Work& a, const Work& b) {
  constexpr int kRuns = 9;
  constexpr double kRunSeconds = 0.05;
  const auto times_for = [](const Work& work) {
    work();
    return std::max<int64_t>(1, static_cast<int64_t>(kRunSeconds / SecondsOf(work, 1)));
  };
  const int64_t times_a = times_for(a);
  const int64_t times_b = times_for(b);
  std::vector<double> seconds_a;
  std::vector<double> seconds_b;
  for (int i = 0; i < kRuns; ++i) {
    seconds_a.push_back(SecondsOf(a, times_a));
    seconds_b.push_back(SecondsOf(b, times_b));
  }
  const auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + kRuns / 2, values.end());
    return values[kRuns / 2];
  };
  return {median(seconds_a), median(seconds_b)};
}

// Reads memory with all threads of a pool: what streaming as many bytes of weights can reach.
class Reader {
 public:
  Reader(cpu::ThreadPool& pool, int64_t bytes)
      : pool_(pool), size_(bytes / 8), words_(static_cast<uint64_t*>(memory_.Allocate(bytes))) {
    std::fill_n(words_, size_, 1);
  }

  void Read() {
    const int64_t pieces = int64_t{8} * pool_.num_threads();
    pool_.Run(pieces, [&](int64_t piece, int) {
      uint64_t sums[16] = {};
      const int64_t end = size_ * (piece + 1) / pieces;
      for (int64_t i = size_ * piece / pieces; i + 16 <= end; i += 16) {
        for (int j = 0; j < 16; ++j) sums[j] += words_[i + j];
      }
      uint64_t sum = 0;
      for (const uint64_t s : sums) sum += s;
      if (sum == 1) std::abort();  // so that the sums are needed
    });
  }

 private:
  HostMemory memory_;
  cpu::ThreadPool& pool_;
  int64_t size_;
  uint64_t* words_;
};

}  // namespace everlong
