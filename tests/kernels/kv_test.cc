// What StoreKv and CopyPages leave in the cache, byte by byte.
#include <cmath>
#include <tuple>

#include "gtest/gtest.h"
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

using Parameters = std::tuple<Backend, DType, Heads>;

class KvTest : public ::testing::TestWithParam<Parameters> {
 protected:
  static constexpr int64_t kLayers = 3;
  static constexpr int64_t kLayer = 1;
  static constexpr float kEps = 1e-6f;

  KvTest()
      : device_(std::get<0>(GetParam())),
        heads_(std::get<2>(GetParam())),
        step_(random_, MixedShapes()),
        before_(std::get<1>(GetParam()), heads_.kv_heads, heads_.head_dim, step_.num_pages(),
                kLayers) {
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
                         ::testing::Combine(::testing::ValuesIn(Backends()),
                                            ::testing::Values(DType::kF32, DType::kF16,
                                                              DType::kBF16),
                                            ::testing::Values(Heads{1, 1, 8}, Heads{4, 2, 80},
                                                              Heads{3, 1, 64}, Heads{2, 2, 128})),
                         [](const ::testing::TestParamInfo<Parameters>& info) {
                           const Heads& heads = std::get<2>(info.param);
                           return std::get<0>(info.param).name + TypeName(std::get<1>(info.param)) +
                                  "d" + std::to_string(heads.head_dim);
                         });

TEST_P(KvTest, StoresRoundedRowsAndNothingElse) {
  Store(nullptr, nullptr);
  HostCache expected = before_;
  ForEachKey([&](int64_t row, int64_t h, int64_t key) {
    expected.Set(key, Head(qkv_, row, heads_.q_heads + h));
    expected.Set(key + expected.ValueOffset(),
                 Head(qkv_, row, heads_.q_heads + heads_.kv_heads + h));
  });
  EXPECT_EQ(after_.bytes, expected.bytes);
  ExpectSameBits(qkv_after_, qkv_);
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
    const std::byte* stored = after_.bytes.data() + key;
    ExpectNormalized(Decode(after_.shape.type, stored, heads_.head_dim),
                     Head(qkv_, row, heads_.q_heads + h), k_weight, kEps, after_.shape.type);
    ExpectSameBits(
        Decode(after_.shape.type, stored + after_.ValueOffset(), heads_.head_dim),
        RoundTo(after_.shape.type, Head(qkv_, row, heads_.q_heads + heads_.kv_heads + h)));
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
    ExpectNormalized(Decode(after_.shape.type, after_.bytes.data() + key, heads_.head_dim),
                     Head(qkv_, row, heads_.q_heads + h), k_weight, kEps, after_.shape.type);
  });
}

TEST_P(KvTest, CopiesPagesOfEveryLayerAndNothingElse) {
  HostIndex index(2, heads_.kv_heads, heads_.head_dim, step_.num_pages(), kLayers);
  for (std::byte& byte : before_.bytes) byte = static_cast<std::byte>(random_());
  for (std::byte& byte : index.bytes) byte = static_cast<std::byte>(random_());
  const std::vector<int32_t> from = {5, 0, 5};
  const std::vector<int32_t> to = {1, 3, 7};
  CopyPagesArgs args = {.cache = before_.shape,
                        .index = index.shape,
                        .from = from.data(),
                        .to = to.data(),
                        .num_layers = kLayers,
                        .num_pages = static_cast<int32_t>(from.size())};
  args.cache.base = device_.Place(before_.bytes);
  args.index.base = device_.Place(index.bytes);
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
    }
  }
  EXPECT_EQ(device_.Read(args.cache.base, static_cast<int64_t>(before_.bytes.size())),
            expected.bytes);
  EXPECT_EQ(device_.Read(args.index.base, static_cast<int64_t>(index.bytes.size())),
            expected_index.bytes);
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
