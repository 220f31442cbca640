// Random weight matrices of every type, as a checkpoint holds them and as values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/kernels/device.h"

namespace everlong {

std::vector<DType> PlainTypes();
std::vector<DType> QuantizedTypes();
std::vector<DType> WeightTypes();

// What a backend computes with that keeps rows of `cols` elements in `weight_type`. kF8 stands in
// multiples of a power of two, the smallest that brings a row into range.
Values AsKept(DType weight_type, const Values& values, int64_t cols);

// Blocks of random codes and factors whose scales and minimums are anything but infinite.
std::vector<std::byte> RandomRows(std::mt19937& random, DType type, int64_t rows, int64_t cols);

// Matrices of equal width, stacked.
struct Weights {
  Weights(std::mt19937& random, DType type, const std::vector<int64_t>& part_rows, int64_t cols);

  // From parts that stand at odd bytes.
  Matrix LoadInto(Device& device) const;

  DType type;
  std::vector<int64_t> part_rows;
  int64_t cols;
  int64_t rows = 0;
  std::vector<std::byte> bytes;
  Values values;
  Values magnitudes;  // of a value, or of the two terms that it is the sum of
};

}  // namespace everlong
