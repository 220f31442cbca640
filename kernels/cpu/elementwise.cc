#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "kernels/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <cmath>
#include <cstring>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/dtype.h"
#include "kernels/kv_address.h"

HWY_BEFORE_NAMESPACE();
namespace everlong::cpu {
namespace HWY_NAMESPACE {

// The last width % kLanes elements of a row go through here, padded with zeros.
HWY_INLINE Vec LoadTail(const float* from, int64_t count) {
  float values[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return hn::LoadU(F32Tag(), values);
}

HWY_INLINE void StoreTail(Vec v, float* to, int64_t count) {
  float values[kLanes];
  hn::StoreU(v, F32Tag(), values);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

float SumSquares(const float* x, int64_t width) {
  Vec sums[4] = {hn::Zero(F32Tag()), hn::Zero(F32Tag()), hn::Zero(F32Tag()), hn::Zero(F32Tag())};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    HWY_UNROLL(4)
    for (int64_t j = 0; j < 4; ++j) {
      const Vec v = F32::Load(x + i + j * kLanes);
      sums[j] = hn::MulAdd(v, v, sums[j]);
    }
  }
  for (; i < width; i += kLanes) {
    const Vec v = i + kLanes <= width ? F32::Load(x + i) : LoadTail(x + i, width - i);
    sums[0] = hn::MulAdd(v, v, sums[0]);
  }
  return Sum(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3])));
}

// out may be x.
void NormalizeRow(const float* x, const float* weight, float* out, int64_t width, float eps) {
  const float mean = SumSquares(x, width) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(mean + eps);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec v = hn::Mul(F32::Load(x + i), hn::Set(F32Tag(), factor));
    hn::StoreU(hn::Mul(v, F32::Load(weight + i)), F32Tag(), out + i);
  }
  for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void ActivateRow(const float* gate, const float* up, float* out, int64_t width) {
  const auto activated = [&](Vec g, Vec u) HWY_ATTR {
    return hn::Mul(hn::Div(g, hn::Add(hn::Set(F32Tag(), 1.0f), Exp(hn::Neg(g)))), u);
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    hn::StoreU(activated(F32::Load(gate + i), F32::Load(up + i)), F32Tag(), out + i);
  }
  if (i < width) {
    StoreTail(activated(LoadTail(gate + i, width - i), LoadTail(up + i, width - i)), out + i,
              width - i);
  }
}

double SumExpOfRow(const float* x, int64_t size, float shift, float factor) {
  const auto exp_of = [&](Vec v) HWY_ATTR {
    return Exp(hn::Mul(hn::Sub(v, hn::Set(F32Tag(), shift)), hn::Set(F32Tag(), factor)));
  };
  constexpr int64_t kBlock = 64 * kLanes;  // summed in f32, the blocks in double
  double total = 0.0;
  int64_t i = 0;
  while (i + kLanes <= size) {
    const int64_t end = HWY_MIN(size - kLanes + 1, i + kBlock);
    Vec sum = hn::Zero(F32Tag());
    for (; i < end; i += kLanes) sum = hn::Add(sum, exp_of(F32::Load(x + i)));
    total += Sum(sum);
  }
  if (i < size) {
    float values[kLanes];
    hn::StoreU(exp_of(LoadTail(x + i, size - i)), F32Tag(), values);
    for (int64_t j = 0; i + j < size; ++j) total += values[j];
  }
  return total;
}

void StoreBF16(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = F32::Load(from + i);
    const WordVec bits = hn::BitCast(U32Tag(), v);
    const WordVec odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(U32Tag(), 1));
    const WordVec rounded = hn::Add(hn::Add(bits, hn::Set(U32Tag(), 0x7FFF)), odd);
    const WordVec quiet = hn::Or(bits, hn::Set(U32Tag(), 0x400000));
    const auto nan = hn::RebindMask(U32Tag(), hn::IsNaN(v));
    const WordVec upper = hn::ShiftRight<16>(hn::IfThenElse(nan, quiet, rounded));
    hn::StoreU(hn::TruncateTo(U16Tag(), upper), U16Tag(), to + i);
  }
  for (; i < count; ++i) to[i] = F32ToBF16(from[i]);
}

// Writes `count` values as elements of `type`.
void StoreAs(DType type, const float* from, void* to, int64_t count) {
  auto* halves = static_cast<uint16_t*>(to);
  if (type == DType::kF32) {
    std::memcpy(to, from, count * sizeof(float));
  } else if (type == DType::kBF16) {
    StoreBF16(from, halves, count);
  } else {
    for (int64_t i = 0; i < count; ++i) halves[i] = F32ToF16(from[i]);
  }
}

// Stores the keys and values of the row of q, k and v that stands at `position`.
void StoreKvRow(const StoreKvArgs& args, float* row, std::span<const int32_t> pages,
                int64_t position) {
  const KvCache& cache = args.cache;
  const int64_t dim = cache.head_dim;
  float* keys = row + args.q_heads * dim;
  float* values = keys + cache.kv_heads * dim;
  for (float* q = row; args.q_norm != nullptr && q < keys; q += dim) {
    NormalizeRow(q, args.q_norm, q, dim, args.eps);
  }
  for (int64_t head = 0; head < cache.kv_heads; ++head) {
    float* key = keys + head * dim;
    // Nobody reads the row's keys afterwards.
    if (args.k_norm != nullptr) NormalizeRow(key, args.k_norm, key, dim, args.eps);
    std::byte* to =
        KeyAddress(cache, args.layer, pages[position / kPageTokens], head, position % kPageTokens);
    StoreAs(cache.type, key, to, dim);
    StoreAs(cache.type, values + head * dim, to + kBlockTokens * dim * ByteSize(cache.type), dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace everlong::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

namespace everlong::cpu {

HWY_EXPORT(NormalizeRow);
HWY_EXPORT(ActivateRow);
HWY_EXPORT(SumExpOfRow);
HWY_EXPORT(StoreKvRow);

namespace {

constexpr int64_t kTaskElements = 4096;  // a microsecond or so

}  // namespace

void RmsNorm(const RmsNormArgs& args, const Step& step, ThreadPool& pool) {
  const int64_t width = args.width;
  const int64_t task_rows = std::max<int64_t>(1, kTaskElements / width);
  pool.Run((args.rows + task_rows - 1) / task_rows, [&](int64_t task, int) {
    const int64_t end = std::min<int64_t>(args.rows, (task + 1) * task_rows);
    for (int64_t i = task * task_rows; i < end; ++i) {
      const int64_t row = args.first_output < 0 ? i : step.output_rows()[args.first_output + i];
      HWY_DYNAMIC_DISPATCH(NormalizeRow)
      (args.x + row * width, args.weight, static_cast<float*>(args.out) + i * width, width,
       args.eps);
    }
  });
}

void ActivateGated(const GatedActivationArgs& args, ThreadPool& pool) {
  const int64_t width = args.width;
  const int64_t row_tasks = (width + kTaskElements - 1) / kTaskElements;
  pool.Run(args.rows * row_tasks, [&](int64_t task, int) {
    const int64_t row = task / row_tasks;
    const int64_t begin = task % row_tasks * kTaskElements;
    const float* gate = static_cast<const float*>(args.gate_up) + row * 2 * width + begin;
    HWY_DYNAMIC_DISPATCH(ActivateRow)
    (gate, gate + width, static_cast<float*>(args.out) + row * width + begin,
     std::min(kTaskElements, width - begin));
  });
}

void StoreKv(const StoreKvArgs& args, const Step& step, ThreadPool& pool) {
  const int64_t width = (args.q_heads + int64_t{2} * args.cache.kv_heads) * args.cache.head_dim;
  for (const StepSequence& sequence : step.sequences()) {
    const int64_t task_rows = std::max<int64_t>(1, kTaskElements / width);
    pool.Run((sequence.num_tokens + task_rows - 1) / task_rows, [&](int64_t task, int) {
      const int64_t end = std::min<int64_t>(sequence.num_tokens, (task + 1) * task_rows);
      for (int64_t i = task * task_rows; i < end; ++i) {
        float* row = static_cast<float*>(args.qkv) + (sequence.first_row + i) * width;
        HWY_DYNAMIC_DISPATCH(StoreKvRow)(args, row, sequence.pages, sequence.context + i);
      }
    });
  }
}

double SumExp(std::span<const float> x, float shift, double factor) {
  return HWY_DYNAMIC_DISPATCH(SumExpOfRow)(x.data(), static_cast<int64_t>(x.size()), shift,
                                           static_cast<float>(factor));
}

}  // namespace everlong::cpu
#endif
