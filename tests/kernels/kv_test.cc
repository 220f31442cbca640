// What StoreKv and CopyPages leave in the cache, byte by byte.
#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "tests/kernels/device.h"
#include "tests/kernels/host_index.h"
#include "tests/kernels/step.h"

namespace everlong {
namespace {

struct Heads {
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
};

using Parameters = std::tuple<KvBackend, Heads>;

class KvTest : public ::testing::TestWithParam<Parameters> {
 protected:
  static constexpr int64_t kLayers = 3;
  static constexpr int64_t kLayer = 1;
  static constexpr float kEps = 1e-6f;

  KvTest()
      : device_(std::get<0>(GetParam()).backend),
        heads_(std::get<1>(GetParam())),
        step_(random_, MixedShapes()),
        before_(std::get<0>(GetParam()).kv_type, heads_.kv_heads, heads_.head_dim,
                step_.num_pages(), kLayers) {
    FillCache(before_, step_, kLayer, random_);
    qkv_ = RandomValues(random_, step_.num_tokens() * row_width(), device_.activation_type());
  }

  int64_t row_width() const {
    return int64_t{heads_.q_heads + 2 * heads_.kv_heads} * heads_.head_dim;
  }
  Values Head(const Values& rows, int64_t row, int64_t head) const {
    const auto begin = rows.begin() + row * row_width() + head * heads_.head_dim;
    return {begin, begin + heads_.head_dim};
  }

  // Runs StoreKv; what it leaves is in after_ and qkv_after_.
  void Store(const float* q_norm, const float* k_norm) {
    KvCache cache = before_.shape;
    cache.base = device_.Place(before_.bytes);
    void* qkv = device_.PlaceActivations(qkv_);
    device_->BeginStep(step_.Layout());
    device_->StoreKv({.cache = cache,
                      .qkv = qkv,
                      .q_norm = q_norm,
                      .k_norm = k_norm,
                      .layer = kLayer,
                      .q_heads = heads_.q_heads,
                      .eps = kEps});
    after_.bytes = device_.Read(cache.base, static_cast<int64_t>(before_.bytes.size()));
    qkv_after_ = device_.ReadActivations(qkv, static_cast<int64_t>(qkv_.size()));
  }

  // The key or value at `byte` is `row`, rounded. With kF8, codes name one of the multiples of the
  // stored scale that are nearest up to the roundings of a quotient.
  void ExpectStored(int64_t byte, const Values& row) const {
    const Values stored = after_.At(byte);
    if (after_.shape.type != DType::kF8)
      return ExpectSameBits(stored, RoundTo(after_.shape.type, row));
    double largest = 0.0;
    for (const float x : row) largest = std::max(largest, std::abs(double{x}));
    const double scale = Decode(DType::kF32, after_.bytes.data() + after_.ScaleByte(byte), 1)[0];
    ASSERT_NEAR(scale, largest / 448, Gamma(3) * largest / 448);
    for (size_t i = 0; i < row.size(); ++i) {
      const double code = std::abs(row[i]) / scale;
      ASSERT_NEAR(stored[i], row[i], scale * (RoundingError(DType::kF8, code) + Gamma(4) * code));
    }
  }

  // The key or value at `byte`, with its scale.
  static void CopyRow(const HostCache& from, int64_t byte, HostCache& to) {
    const auto copy = [&](int64_t begin, int64_t count) {
      std::copy_n(from.bytes.begin() + begin, count, to.bytes.begin() + begin);
    };
    copy(byte, from.shape.head_dim * ByteSize(from.shape.type));
    if (from.shape.type == DType::kF8) copy(from.ScaleByte(byte), ByteSize(DType::kF32));
  }

  // Calls check(key head of a row, byte of its key in the cache) for every stored key.
  template <typename Check>
  void ForEachKey(Check check) const {
    for (int32_t s = 0; s < step_.num_sequences(); ++s) {
      for (int32_t row = step_.query_begin[s]; row < step_.query_begin[s + 1]; ++row) {
        const int64_t position = step_.context_begin[s] + row - step_.query_begin[s];
        for (int32_t h = 0; h < heads_.kv_heads; ++h) {
          check(row, h, before_.KeyByte(kLayer, step_.page(s, position), h, position % 64));
        }
      }
    }
  }

  std::mt19937 random_{1};
  Device device_;
  Heads heads_;
  Step step_;
  HostCache before_;
  HostCache after_ = before_;
  Values qkv_;
  Values qkv_after_;
};
INSTANTIATE_TEST_SUITE_P(Backends, KvTest,
                         ::testing::Combine(::testing::ValuesIn(KvBackends(Backends())),
                                            ::testing::Values(Heads{1, 1, 8}, Heads{4, 2, 80},
                                                              Heads{3, 1, 64}, Heads{2, 2, 128})),
                         [](const ::testing::TestParamInfo<Parameters>& info) {
                           return std::get<0>(info.param).name() + "d" +
                                  std::to_string(std::get<1>(info.param).head_dim);
                         });

TEST_P(KvTest, StoresRoundedRowsAndNothingElse) {
  Store(nullptr, nullptr);
  HostCache expected = before_;
  ForEachKey([&](int64_t row, int64_t h, int64_t key) {
    const int64_t value = key + after_.ValueOffset();
    ExpectStored(key, Head(qkv_, row, heads_.q_heads + h));
    ExpectStored(value, Head(qkv_, row, heads_.q_heads + heads_.kv_heads + h));
    for (const int64_t byte : {key, value}) CopyRow(after_, byte, expected);
  });
  EXPECT_EQ(after_.bytes, expected.bytes);
  ExpectSameBits(qkv_after_, qkv_);
}

// Rows of zeros, and rows that 4 bits of exponent and 3 of mantissa hold beside a scale that is a
// power of two.
TEST_P(KvTest, StoresExactlyWhatEveryTypeHolds) {
  for (size_t row = 0; row < qkv_.size(); row += heads_.head_dim) {
    const float scale = std::ldexp(row % 5 == 0 ? 0.0f : 1.0f, static_cast<int>(random_() % 8) - 6);
    for (int32_t i = 0; i < heads_.head_dim; ++i) {
      const auto magnitude = static_cast<uint8_t>(i == 3 ? 0x7E : random_() % 0x7F);
      const float value = F8ToF32(magnitude);
      qkv_[row + i] = scale * (random_() % 2 == 0 ? value : -value);
    }
  }
  Store(nullptr, nullptr);
  ForEachKey([&](int64_t row, int64_t h, int64_t key) {
    EXPECT_EQ(after_.At(key), Head(qkv_, row, heads_.q_heads + h));
    EXPECT_EQ(after_.At(key + after_.ValueOffset()),
              Head(qkv_, row, heads_.q_heads + heads_.kv_heads + h));
  });
}

TEST_P(KvTest, NormalizesQueriesInPlaceAndKeysOnTheWay) {
  const DType activation = device_.activation_type();
  const Values q_weight = RandomValues(random_, heads_.head_dim);
  const Values k_weight = RandomValues(random_, heads_.head_dim);
  Store(device_.PlaceFloats(q_weight), device_.PlaceFloats(k_weight));
  for (int32_t row = 0; row < step_.num_tokens(); ++row) {
    for (int32_t h = 0; h < heads_.q_heads; ++h) {
      ExpectNormalized(Head(qkv_after_, row, h), Head(qkv_, row, h), q_weight, kEps, activation);
    }
  }
  ForEachKey([&](int64_t row, int64_t h, int64_t key) {
    ExpectNormalized(after_.At(key), Head(qkv_, row, heads_.q_heads + h), k_weight, kEps,
                     after_.shape.type);
    ExpectStored(key + after_.ValueOffset(), Head(qkv_, row, heads_.q_heads + heads_.kv_heads + h));
  });
}

TEST_P(KvTest, NormalizesKeysAlone) {
  const Values k_weight = RandomValues(random_, heads_.head_dim);
  Store(nullptr, device_.PlaceFloats(k_weight));
  for (int32_t row = 0; row < step_.num_tokens(); ++row) {
    for (int32_t h = 0; h < heads_.q_heads; ++h) {
      ExpectSameBits(Head(qkv_after_, row, h), Head(qkv_, row, h));
    }
  }
  ForEachKey([&](int64_t row, int64_t h, int64_t key) {
    ExpectNormalized(after_.At(key), Head(qkv_, row, heads_.q_heads + h), k_weight, kEps,
                     after_.shape.type);
  });
}

TEST_P(KvTest, CopiesPagesOfEveryLayerAndNothingElse) {
  HostIndex index(2, heads_.kv_heads, heads_.head_dim, step_.num_pages(), kLayers);
  for (std::byte& byte : before_.bytes) byte = static_cast<std::byte>(random_());
  for (std::byte& byte : index.bytes) byte = static_cast<std::byte>(random_());
  for (std::byte& byte : index.range_bytes) byte = static_cast<std::byte>(random_());
  const std::vector<int32_t> from = {5, 0, 5};
  const std::vector<int32_t> to = {1, 3, 7};
  CopyPagesArgs args = {.cache = before_.shape,
                        .index = index.Place(device_),
                        .from = from.data(),
                        .to = to.data(),
                        .num_layers = kLayers,
                        .num_pages = static_cast<int32_t>(from.size())};
  args.cache.base = device_.Place(before_.bytes);
  device_->CopyPages(args);
  HostCache expected = before_;
  HostIndex expected_index = index;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (size_t i = 0; i < from.size(); ++i) {
      std::copy_n(before_.bytes.begin() + before_.KeyByte(layer, from[i], 0, 0),
                  before_.shape.PageBytes(),
                  expected.bytes.begin() + expected.KeyByte(layer, to[i], 0, 0));
      std::copy_n(index.bytes.begin() + index.PageByte(layer, from[i]), index.shape.PageBytes(),
                  expected_index.bytes.begin() + index.PageByte(layer, to[i]));
      std::copy_n(index.range_bytes.begin() + index.RangeByte(layer, from[i]),
                  index.shape.RangePageBytes(),
                  expected_index.range_bytes.begin() + index.RangeByte(layer, to[i]));
    }
  }
  EXPECT_EQ(device_.Read(args.cache.base, static_cast<int64_t>(before_.bytes.size())),
            expected.bytes);
  index.Read(device_, args.index);
  EXPECT_EQ(index.bytes, expected_index.bytes);
  EXPECT_EQ(index.range_bytes, expected_index.range_bytes);
}

TEST_P(KvTest, CopiesPagesWithoutAnIndex) {
  KvCache cache = before_.shape;
  cache.base = device_.Place(before_.bytes);
  const int32_t from = 2;
  const int32_t to = 0;
  device_->CopyPages(
      {.cache = cache, .from = &from, .to = &to, .num_layers = kLayers, .num_pages = 1});
  const std::vector<std::byte> after =
      device_.Read(cache.base, static_cast<int64_t>(before_.bytes.size()));
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto source = before_.bytes.begin() + before_.KeyByte(layer, from, 0, 0);
    EXPECT_TRUE(std::equal(source, source + cache.PageBytes(),
                           after.begin() + before_.KeyByte(layer, to, 0, 0)));
  }
}

}  // namespace
}  // namespace everlong
