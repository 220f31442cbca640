// How matrices come to the device: threads convert rows into pinned memory and copy them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <future>
#include <thread>

#include "kernels/check.h"
#include "kernels/cuda/linear.h"
#include "kernels/dtype.h"
#include "kernels/quant.h"

namespace everlong::cuda {
namespace {

// Staged at once by one thread.
constexpr int64_t kPieceBytes = int64_t{2} << 20;
constexpr int64_t kMaxThreads = 32;

// Writes values / scale as E4M3 and returns the scale.
float EncodeF8(std::span<const float> values, std::byte* out) {
  float most = 0.0f;
  for (const float value : values) most = std::max(most, std::abs(value));
  int exponent = 0;
  const float fraction = std::frexp(most, &exponent);  // 448 is 0.875 * 2^9
  exponent = std::max(exponent - (fraction <= 0.875f ? 9 : 8), -126);
  const float inverse = std::ldexp(1.0f, -exponent);
  for (const float value : values) *out++ = static_cast<std::byte>(F32ToF8(value * inverse));
  return std::ldexp(1.0f, exponent);
}

// The rows of stacked parts.
class Rows {
 public:
  explicit Rows(std::span<const HostMatrix> parts) : parts_(parts) {
    EVERLONG_CHECK(!parts.empty());
    for (const HostMatrix& part : parts) {
      EVERLONG_CHECK(part.cols == cols() && part.type == type());
      count_ += part.rows;
    }
  }
  int64_t count() const { return count_; }
  int64_t cols() const { return parts_.front().cols; }
  DType type() const { return parts_.front().type; }

  const std::byte* operator[](int64_t row) const {
    const HostMatrix* part = parts_.data();
    for (; row >= part->rows; ++part) row -= part->rows;
    return static_cast<const std::byte*>(part->data) + row * RowBytes(type(), cols());
  }

 private:
  std::span<const HostMatrix> parts_;
  int64_t count_ = 0;
};

// Converts rows [begin, end) to `type`; scales[row], for kF8.
void Convert(const Rows& rows, int64_t begin, int64_t end, DType type, std::byte* out,
             float* scales) {
  const int64_t cols = rows.cols();
  const int64_t row_bytes = cols * ByteSize(type);
  const bool copies = rows.type() == DType::kBF16 && type == DType::kBF16;
  std::vector<float> values(copies ? 0 : cols);
  for (int64_t row = begin; row < end; ++row, out += row_bytes) {
    if (copies) {
      std::memcpy(out, rows[row], row_bytes);
      continue;
    }
    DequantizeRow(rows.type(), rows[row], cols, values.data());
    if (type == DType::kF8) {
      scales[row] = EncodeF8(values, out);
    } else {
      for (int64_t i = 0; i < cols; ++i) {
        WriteElement(out + i * ByteSize(type), type, values[i]);
      }
    }
  }
}

int64_t NumThreads(int64_t pieces) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  return std::min({cores, kMaxThreads, pieces});
}

}  // namespace

Matrix Linear::Load(std::span<const HostMatrix> parts) {
  const Rows rows(parts);
  const int64_t count = rows.count();
  Matrix matrix = {.rows = count, .cols = rows.cols(), .type = weight_type_};
  const bool scaled = weight_type_ == DType::kF8;
  DeviceMemory memory = AllocateDevice(RowScalesOffset(matrix) + (scaled ? count * 4 : 0) + 1);
  matrix.data = memory.get();

  const int64_t row_bytes = rows.cols() * ByteSize(weight_type_);
  const int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  const int64_t piece_bytes = piece_rows * row_bytes;
  const int64_t threads = NumThreads((count + piece_rows - 1) / piece_rows);
  if (staging_bytes_ < threads * piece_bytes) {
    staging_ = AllocatePinned(threads * piece_bytes);
    staging_bytes_ = threads * piece_bytes;
  }

  std::vector<float> scales(scaled ? count : 0);
  std::atomic<int64_t> next = 0;
  const auto stage = [&](int64_t thread) {
    std::byte* piece = staging_.get() + thread * piece_bytes;
    int64_t begin;
    while ((begin = next.fetch_add(piece_rows)) < count) {
      const int64_t end = std::min(begin + piece_rows, count);
      Convert(rows, begin, end, weight_type_, piece, scales.data());
      CopyNow(memory.get() + begin * row_bytes, piece, (end - begin) * row_bytes);
    }
  };
  std::vector<std::future<void>> others;
  for (int64_t thread = 1; thread < threads; ++thread) {
    others.push_back(std::async(std::launch::async, stage, thread));
  }
  if (threads > 0) stage(0);
  for (std::future<void>& other : others) other.get();
  if (scaled) CopyNow(memory.get() + RowScalesOffset(matrix), scales.data(), count * 4);
  matrices_.push_back(std::move(memory));
  return matrix;
}

}  // namespace everlong::cuda
