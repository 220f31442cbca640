#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quant_matmul.cc"
#define HWY_WANT_AVX3_DL  // byte products
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/quant_matmul.h"
#include "kernels/cpu/quant_panel.h"
#include "kernels/cpu/store_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// --- activations ---

// Takes the lowest digit from `values`, whose rest it divides by the base.
HWY_INLINE IntVec TakeDigit(IntVec& values) {
  const I32Tag i32;
  const IntVec half = hn::Set(i32, 1 << (kDigitBits - 1));
  const IntVec digit =
      hn::Sub(hn::And(hn::Add(values, half), hn::Set(i32, (1 << kDigitBits) - 1)), half);
  values = hn::ShiftRight<kDigitBits>(hn::Sub(values, digit));
  return digit;
}

HWY_INLINE void StoreDigits(IntVec digits, int8_t* to) {
  const hn::Rebind<int8_t, I32Tag> i8;
  hn::StoreU(hn::DemoteTo(i8, digits), i8, to);
}

// Splits `count` activations, whose weights share a scale and have `offset` subtracted from their
// codes. Digit d of activation i goes to digits[d * stride + i].
HWY_INLINE void SplitPart(const float* x, int64_t count, int32_t offset, int8_t* digits,
                          int64_t stride, RowPart& part) {
  const I32Tag i32;
  const F32Tag f32;
  // Order of magnitude is order of bits, and NaN comes last.
  IntVec most = hn::Zero(i32);
  for (int64_t i = 0; i < count; i += kLanes) {
    most = hn::Max(most, hn::BitCast(i32, hn::Abs(F32::Load(x + i))));
  }
  const int32_t exponent = hn::GetLane(hn::MaxOfLanes(i32, most)) >> 23;
  constexpr int32_t kInfinite = 255;
  // The largest becomes an integer from 2^19 up, below 2^20.
  const int32_t scale = HWY_MAX(exponent, 20) - 19;
  const Vec inverse = hn::Set(f32, std::bit_cast<float>((2 * 127 - scale) << 23));
  IntVec sums[kDigits] = {hn::Zero(i32), hn::Zero(i32), hn::Zero(i32)};
  for (int64_t i = 0; i < count; i += kLanes) {
    IntVec values = hn::NearestInt(hn::Mul(F32::Load(x + i), inverse));
    const IntVec low = TakeDigit(values);
    const IntVec middle = TakeDigit(values);
    StoreDigits(values, digits + i);
    StoreDigits(middle, digits + stride + i);
    StoreDigits(low, digits + 2 * stride + i);
    sums[0] = hn::Add(sums[0], values);
    sums[1] = hn::Add(sums[1], middle);
    sums[2] = hn::Add(sums[2], low);
  }
  int32_t total = 0;
  for (int d = 0; d < kDigits; ++d) {
    const int32_t sum = hn::GetLane(hn::SumOfLanes(i32, sums[d]));
    part.start[d] = -offset * sum;
    total = (total << kDigitBits) + sum;
  }
  part.scale = exponent == kInfinite ? std::numeric_limits<float>::quiet_NaN()
                                     : std::bit_cast<float>(scale << 23);
  part.sum = static_cast<float>(total) * part.scale;
}

void SplitRowVectors(DType type, const float* x, int64_t cols, int8_t* digits, RowPart* parts) {
  const int64_t count = ScaledElements(type);
  for (int64_t k = 0; k < cols; k += count) {
    SplitPart(x + k, count, CodeOffset(type), digits + k, cols, *parts++);
  }
}

// --- weights ---

// The codes of four inputs each in kLanes columns: of group `group` of eight inputs of a unit,
// whose words for these columns begin at `words`.
template <DType kType>
HWY_INLINE void LoadCodes(const uint32_t* words, int64_t group, ByteVec (&codes)[2]) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  const U32Tag u32;
  const auto load = [&](int64_t i) HWY_ATTR { return hn::LoadU(u32, words + i * kPanelColumns); };
  if constexpr (kPanel.low_bits() == 8) {
    codes[0] = hn::BitCast(U8Tag(), load(2 * group));
    codes[1] = hn::BitCast(U8Tag(), load(2 * group + 1));
  } else {
    const WordVec nibbles = hn::Set(u32, 0x0F0F0F0Fu);
    const WordVec low = load(group);
    WordVec first = hn::And(low, nibbles);
    WordVec second = hn::And(hn::ShiftRight<4>(low), nibbles);
    if constexpr (kPanel.high_bits() > 0) {
      constexpr int kHighBits = kPanel.high_bits();
      const CodeField field = kPanel.High(static_cast<int>(group) * 8);
      const WordVec high = hn::ShiftRightSame(load(field.word), field.shift);
      const WordVec mask = hn::Set(u32, 0x10101010u * ((1u << kHighBits) - 1));
      first = hn::OrAnd(first, hn::ShiftLeft<4>(high), mask);
      second = hn::OrAnd(second, hn::ShiftLeft<4 - kHighBits>(high), mask);
    }
    codes[0] = hn::BitCast(U8Tag(), first);
    codes[1] = hn::BitCast(U8Tag(), second);
  }
}

template <class Factor>
HWY_INLINE Vec LoadFactors(const std::byte* from) {
  const hn::Rebind<Factor, F32Tag> bytes;
  const auto factors = hn::LoadU(bytes, reinterpret_cast<const Factor*>(from));
  return hn::ConvertTo(F32Tag(), hn::PromoteTo(I32Tag(), factors));
}

// What turns sums of codes into sums of weights, in kLanes columns.
struct ColumnScales {
  Vec scale;
  Vec minimum;
};

// Of inputs whose factors, if there are any, are at `factors`.
template <DType kType>
HWY_INLINE ColumnScales LoadScales(const std::byte* block, const std::byte* factors,
                                   int64_t column) {
  constexpr QuantPanel kPanel = QuantPanelOf(kType);
  const auto* halves = reinterpret_cast<const uint16_t*>(block) + column;
  ColumnScales scales = {F16::Load(halves), hn::Zero(F32Tag())};
  if constexpr (kPanel.has_minimums) scales.minimum = F16::Load(halves + kPanelColumns);
  if constexpr (kPanel.has_factors) {
    using Factor = std::conditional_t<kPanel.has_minimums, uint8_t, int8_t>;
    factors += column;
    scales.scale = hn::Mul(scales.scale, LoadFactors<Factor>(factors));
    if constexpr (kPanel.has_minimums) {
      const Vec factor = LoadFactors<Factor>(factors + kPanelColumns);
      scales.minimum = hn::Neg(hn::Mul(scales.minimum, factor));
    }
  }
  return scales;
}

// --- tiles ---

// kRows rows by one pair of vectors of columns.
template <DType kType, int kRows>
struct QuantTile {
  static constexpr QuantPanel kPanel = QuantPanelOf(kType);

  const int8_t* digits;  // of the first row
  const RowPart* parts;
  int64_t cols;
  int64_t column;  // of the panel, where the lower vectors begin
  Tile<kRows, 1> sums;

  // Adds the products with inputs from k on that share a scale. Integers first, which are exact.
  HWY_INLINE void AddPart(const std::byte* block, const std::byte* unit, int64_t part, int64_t k) {
    constexpr int64_t kGroups = kPanel.scaled_inputs / 8;
    const I32Tag i32;
    const int64_t row_parts = cols / kPanel.scaled_inputs;
    const RowPart* row_part = parts + k / kPanel.scaled_inputs;
    IntVec dots[kRows][kDigits][2];
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(3)
      for (int d = 0; d < kDigits; ++d) {
        dots[r][d][0] = dots[r][d][1] = hn::Set(i32, row_part[r * row_parts].start[d]);
      }
    }
    const auto* words = reinterpret_cast<const uint32_t*>(unit + kPanel.FactorBytes()) + column;
    for (int64_t group = 0; group < kGroups; ++group) {
      ByteVec codes[2][2];
      LoadCodes<kType>(words, part * kGroups + group, codes[0]);
      LoadCodes<kType>(words + kPanelColumns / 2, part * kGroups + group, codes[1]);
      HWY_UNROLL(2)
      for (int q = 0; q < 2; ++q) {
        HWY_UNROLL(4)
        for (int r = 0; r < kRows; ++r) {
          HWY_UNROLL(3)
          for (int d = 0; d < kDigits; ++d) {
            int32_t quad;
            std::memcpy(&quad, digits + (r * kDigits + d) * cols + k + (group * 2 + q) * 4, 4);
            const IntVec broadcast = hn::Set(i32, quad);
            dots[r][d][0] = AddByteProducts(codes[0][q], broadcast, dots[r][d][0]);
            dots[r][d][1] = AddByteProducts(codes[1][q], broadcast, dots[r][d][1]);
          }
        }
      }
    }
    const std::byte* factors = unit + part * kPanelColumns;
    HWY_UNROLL(2)
    for (int half = 0; half < 2; ++half) {
      const ColumnScales scales =
          LoadScales<kType>(block, factors, column + half * kPanelColumns / 2);
      HWY_UNROLL(4)
      for (int r = 0; r < kRows; ++r) {
        sums[r][0][half] = AddScaled(dots[r][0][half], dots[r][1][half], dots[r][2][half], scales,
                                     row_part[r * row_parts], sums[r][0][half]);
      }
    }
  }

  // The upper digits' sum is below 2^27: 32 products of 255 and 64, times 128, and as much again.
  static HWY_INLINE Vec AddScaled(IntVec high, IntVec middle, IntVec low,
                                  const ColumnScales& scales, const RowPart& part, Vec sum) {
    const F32Tag f32;
    const Vec upper = hn::ConvertTo(f32, hn::Add(hn::ShiftLeft<kDigitBits>(high), middle));
    const Vec dot = hn::MulAdd(upper, hn::Set(f32, 1 << kDigitBits), hn::ConvertTo(f32, low));
    sum = hn::MulAdd(dot, hn::Mul(scales.scale, hn::Set(f32, part.scale)), sum);
    if (!kPanel.has_minimums) return sum;
    return hn::MulAdd(scales.minimum, hn::Set(f32, part.sum), sum);
  }

  HWY_INLINE void AddPanel(const std::byte* panel) {
    for (int64_t k = 0; k < cols;) {
      const std::byte* block = panel;
      panel += kPanel.HeaderBytes();
      for (int64_t unit = 0; unit < kPanel.block_inputs / kUnitInputs; ++unit) {
        for (int64_t part = 0; part < kUnitInputs / kPanel.scaled_inputs; ++part) {
          AddPart(block, panel, part, k);
          k += kPanel.scaled_inputs;
        }
        panel += kPanel.UnitBytes();
      }
    }
  }
};

template <DType kType>
struct QuantTiles {
  const MatMulArgs& args;
  const DigitRows& rows;
  int64_t first_row;
  int64_t first_panel;

  template <int kRows, int kPairs>
  void Run(int64_t row, int64_t pair) const {
    static_assert(kPairs == 1);
    row += first_row;
    pair += first_panel * kPairsPerPanel;
    const int64_t cols = args.w.cols;
    const auto* panels = static_cast<const std::byte*>(args.w.data);
    QuantTile<kType, kRows> tile = {.digits = rows.digits + row * kDigits * cols,
                                    .parts = rows.parts + row * (cols / ScaledElements(kType)),
                                    .cols = cols,
                                    .column = pair % kPairsPerPanel * kLanes};
    Clear<kRows, 1>(tile.sums);
    tile.AddPanel(panels + pair / kPairsPerPanel * QuantPanelOf(kType).PanelBytes(cols));
    StoreTile<kRows, 1>(args, row, pair, tile.sums);
  }
};

// Of 32 registers 24 are sums, of 16 registers 12.
constexpr int kQuantRows = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

void MultiplyTask(const MatMulArgs& args, const DigitRows& rows, const MatMulBlock& block) {
  VisitQuantType(args.w.type, [&](auto type) {
    RunTiles<kQuantRows, 1>(QuantTiles<type()>{args, rows, block.row_begin, block.panel_begin},
                            block.row_end - block.row_begin,
                            (block.panel_end - block.panel_begin) * kPairsPerPanel);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace everlong::cpu {

HWY_EXPORT(SplitRowVectors);
HWY_EXPORT(MultiplyTask);

void SplitRow(const MatMulArgs& args, int64_t row, const DigitRows& rows) {
  const int64_t cols = args.w.cols;
  HWY_DYNAMIC_DISPATCH(SplitRowVectors)
  (args.w.type, static_cast<const float*>(args.x) + row * args.x_stride, cols,
   rows.digits + row * kDigits * cols, rows.parts + row * (cols / ScaledElements(args.w.type)));
}

void MultiplyQuantized(const MatMulArgs& args, const DigitRows& rows, const MatMulBlock& block) {
  HWY_DYNAMIC_DISPATCH(MultiplyTask)(args, rows, block);
}

}  // namespace everlong::cpu
#endif
