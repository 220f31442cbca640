// IndexKeys: the compact copy of the keys of complete pages.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/kernels/device.h"
#include "tests/kernels/host_index.h"
#include "tests/kernels/step.h"

namespace everlong {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kLayer = 1;
constexpr int32_t kKvHeads = 2;

using Parameters = std::tuple<KvBackend, int32_t, int32_t>;  // ..., head_dim, bits

class IndexTest : public ::testing::TestWithParam<Parameters> {
 protected:
  IndexTest()
      : device_(std::get<0>(GetParam()).backend),
        head_dim_(std::get<1>(GetParam())),
        bits_(std::get<2>(GetParam())),
        step_(random_, {{0, 70}, {60, 3}, {63, 1}, {64, 63}, {100, 200}, {128, 64}, {5, 2}}),
        cache_(std::get<0>(GetParam()).kv_type, kKvHeads, head_dim_, step_.num_pages(), kLayers),
        before_(bits_, kKvHeads, head_dim_, step_.num_pages(), kLayers) {
    for (std::byte& byte : before_.bytes) byte = static_cast<std::byte>(random_());
    for (std::byte& byte : before_.range_bytes) byte = static_cast<std::byte>(random_());
  }

  HostIndex Run() {
    IndexKeysArgs args = {.cache = cache_.shape, .index = before_.Place(device_), .layer = kLayer};
    args.cache.base = device_.Place(cache_.bytes);
    device_->BeginStep(step_.Layout());
    device_->IndexKeys(args);
    HostIndex after = before_;
    after.Read(device_, args.index);
    return after;
  }

  std::vector<int32_t> CompletedPages() const {
    std::vector<int32_t> pages;
    for (int32_t s = 0; s < step_.num_sequences(); ++s) {
      for (int64_t end = 64; end <= step_.length(s); end += 64) {
        if (end > step_.context_begin[s]) pages.push_back(step_.page(s, end - 64));
      }
    }
    return pages;
  }

  std::mt19937 random_{1};
  Device device_;
  int32_t head_dim_;
  int32_t bits_;
  Step step_;
  HostCache cache_;
  HostIndex before_;
};
INSTANTIATE_TEST_SUITE_P(Backends, IndexTest,
                         ::testing::Combine(::testing::ValuesIn(KvBackends(Backends())),
                                            ::testing::Values(8, 80, 128),
                                            ::testing::Values(1, 2, 4)),
                         [](const ::testing::TestParamInfo<Parameters>& info) {
                           std::string name = std::get<0>(info.param).name();
                           name.append("d").append(std::to_string(std::get<1>(info.param)));
                           return name.append("b").append(std::to_string(std::get<2>(info.param)));
                         });

// The distance between levels: with 16 the largest is just reached, 4 lie a deviation apart, 2 lie
// at the mean magnitude on either side.
double LevelDistance(const std::vector<double>& x, int32_t bits) {
  double largest = 0.0;
  double sum = 0.0;
  double squares = 0.0;
  for (const double v : x) {
    largest = std::max(largest, std::abs(v));
    sum += std::abs(v);
    squares += v * v;
  }
  const auto n = static_cast<double>(x.size());
  return bits == 4 ? largest / 7.5 : bits == 2 ? std::sqrt(squares / n) : 2 * sum / n;
}

// One page and head: mean and scale are right to the error of sums in f32 and one rounding to f16;
// codes name the level nearest to the key, or one as near to a few roundings.
void ExpectIndexes(const HostIndex& index, const HostCache& cache, int64_t page, int64_t head) {
  const auto dim = static_cast<size_t>(cache.shape.head_dim);
  const int32_t levels = 1 << index.shape.bits;
  std::vector<Values> keys;
  for (int64_t t = 0; t < 64; ++t) keys.push_back(cache.At(cache.KeyByte(kLayer, page, head, t)));
  const Values mean = index.Mean(kLayer, page, head);
  for (size_t i = 0; i < dim; ++i) {
    double exact = 0.0;
    double magnitude = 0.0;
    for (const Values& key : keys) {
      exact += key[i] / 64;
      magnitude += std::abs(key[i]) / 64;
    }
    const double error = Gamma(65) * magnitude;
    ASSERT_NEAR(mean[i], exact, error + RoundingError(DType::kF16, std::abs(exact) + error));
  }
  for (int64_t t = 0; t < 64; ++t) {
    std::vector<double> x(dim);
    for (size_t i = 0; i < dim; ++i) x[i] = double{keys[t][i]} - mean[i];
    const double distance = LevelDistance(x, index.shape.bits);
    const double scale = index.Scale(kLayer, page, head, t);
    const double error = Gamma(cache.shape.head_dim + 8) * distance;
    ASSERT_NEAR(scale, distance, error + RoundingError(DType::kF16, distance + error));
    const std::vector<int32_t> codes = index.Codes(kLayer, page, head, t);
    for (size_t i = 0; i < dim; ++i) {
      const auto away = [&](int32_t code) {
        return std::abs(x[i] - scale * (code - (levels - 1) / 2.0));
      };
      double least = away(0);
      for (int32_t code = 1; code < levels; ++code) least = std::min(least, away(code));
      const double slack = Gamma(4) * (std::abs(keys[t][i]) + std::abs(mean[i]) + scale * levels);
      ASSERT_LE(away(codes[i]), least + slack) << "token " << t << ", element " << i;
    }
  }
}

// Codes are those nearest to the least and the largest element, in the least unit that holds them
// all, to a rounding of what kF8 multiplies.
void ExpectRanges(const HostIndex& index, const HostCache& cache, int64_t page, int64_t head) {
  const auto dim = static_cast<size_t>(cache.shape.head_dim);
  Values lows(dim, INFINITY);
  Values highs(dim, -INFINITY);
  double largest = 0.0;
  for (int64_t t = 0; t < 64; ++t) {
    const Values key = cache.At(cache.KeyByte(kLayer, page, head, t));
    for (size_t i = 0; i < dim; ++i) {
      lows[i] = std::min(lows[i], key[i]);
      highs[i] = std::max(highs[i], key[i]);
      largest = std::max(largest, std::abs(double{key[i]}));
    }
  }
  const double slack = Gamma(1) * largest;
  const HostIndex::Ranges ranges = index.RangesOf(kLayer, page, head);
  ASSERT_GE(63 * ranges.unit, largest - slack);
  ASSERT_LT(63 * ranges.unit / 2, largest + slack);
  for (size_t i = 0; i < dim; ++i) {
    ASSERT_NEAR(ranges.lows[i], lows[i], ranges.unit / 2 + slack);
    ASSERT_NEAR(ranges.highs[i], highs[i], ranges.unit / 2 + slack);
  }
}

TEST_P(IndexTest, IndexesCompletedPagesAndNothingElse) {
  FillCache(cache_, step_, kLayer, random_);
  const HostIndex after = Run();
  HostIndex rest = after;
  const std::vector<int32_t> completed = CompletedPages();
  ASSERT_EQ(completed.size(), 6u);
  for (const int32_t page : completed) {
    for (int32_t head = 0; head < kKvHeads; ++head) {
      ExpectIndexes(after, cache_, page, head);
      ExpectRanges(after, cache_, page, head);
    }
    const auto begin = static_cast<ptrdiff_t>(after.PageByte(kLayer, page));
    std::copy_n(before_.bytes.begin() + begin, after.shape.PageBytes(), rest.bytes.begin() + begin);
    const auto ranges = static_cast<ptrdiff_t>(after.RangeByte(kLayer, page));
    std::copy_n(before_.range_bytes.begin() + ranges, after.shape.RangePageBytes(),
                rest.range_bytes.begin() + ranges);
  }
  EXPECT_EQ(rest.bytes, before_.bytes);
  EXPECT_EQ(rest.range_bytes, before_.range_bytes);
}

// Keys on exact levels around a mean of 0: the index holds one right set of bytes, whatever the
// order of sums.
TEST_P(IndexTest, KeepsKeysThatLieOnLevels) {
  for (const int32_t page : CompletedPages())
    FillPageOnLevels(cache_, kLayer, page, bits_, random_);
  const HostIndex after = Run();
  for (const int32_t page : CompletedPages()) {
    for (int32_t head = 0; head < kKvHeads; ++head) {
      for (int64_t t = 0; t < 64; ++t) {
        const Values key = cache_.At(cache_.KeyByte(kLayer, page, head, t));
        const std::vector<double> decoded = after.Key(kLayer, page, head, t);
        for (int32_t i = 0; i < head_dim_; ++i) {
          // Four levels a deviation apart hold +-d as 0.5 d or -1.5 d: ties round to even.
          const double expected =
              bits_ == 2 ? (key[i] > 0 ? 0.5 : -1.5) * std::abs(key[i]) : key[i];
          ASSERT_EQ(decoded[i], expected);
        }
      }
    }
  }
}

TEST_P(IndexTest, KeepsKeysThatAreAllEqual) {
  for (const int32_t page : CompletedPages()) {
    for (int32_t head = 0; head < kKvHeads; ++head) {
      for (int64_t t = 0; t < 64; ++t) {
        cache_.Set(cache_.KeyByte(kLayer, page, head, t), Values(head_dim_, 1.5f), 1.0f);
      }
    }
  }
  const HostIndex after = Run();
  for (const int32_t page : CompletedPages()) {
    for (int64_t t = 0; t < 64; ++t) {
      const std::vector<double> decoded = after.Key(kLayer, page, 1, t);
      for (const double value : decoded) ASSERT_EQ(value, 1.5);
    }
    const HostIndex::Ranges ranges = after.RangesOf(kLayer, page, 1);
    for (const double value : ranges.lows) ASSERT_EQ(value, 1.5);
    for (const double value : ranges.highs) ASSERT_EQ(value, 1.5);
  }
}

}  // namespace
}  // namespace everlong
