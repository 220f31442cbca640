// Element types, random values and error bounds of the kernel tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/args.h"

namespace everlong {

using Values = std::vector<float>;

std::string TypeName(DType type);

// The element type's nearest values, ties to even, as f32 and as they lie in memory.
Values RoundTo(DType type, const Values& values);
std::vector<std::byte> Encode(DType type, const Values& values);
Values Decode(DType type, const std::byte* bytes, int64_t count);

// Normal values of `deviation`, representable in `type`.
Values RandomValues(std::mt19937& random, int64_t count, DType type = DType::kF32,
                    double deviation = 1.0);

// Half the distance between 1 and the next value.
double UnitRoundoff(DType type);

// The change of a value by `n` roundings, relative to it, in f32 unless told otherwise (Higham:
// Accuracy and Stability of Numerical Algorithms, 2nd edition, lemma 3.1). A sum of n terms in
// whatever order is off by Gamma(n - 1) times the sum of their absolute values (section 4.2).
double Gamma(int64_t n, DType type = DType::kF32);

// Gamma of f32, or where products of the 16-bit `type` are summed, of twice as many roundings: a
// tensor core cuts off what others round (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of
// NVIDIA tensor cores, 2021).
double SumError(int64_t n, DType type);

// The error of rounding `value` to `type`.
double RoundingError(DType type, double value);

// An exp of f32 is asked to be as good as this many roundings of its result; vector libraries
// promise 1 to 4 units in the last place.
inline constexpr int kExpRoundings = 8;

// |actual[i] - expected[i]| <= bound[i]; NaN is never within bounds.
void ExpectWithin(const Values& actual, const Values& expected, const std::vector<double>& bound);

// `actual` is x / sqrt(mean(x^2) + eps) * weight, rounded to `type`.
void ExpectNormalized(const Values& actual, const Values& x, const Values& weight, float eps,
                      DType type);

// The same bits, NaN included.
void ExpectSameBits(const Values& actual, const Values& expected);

}  // namespace everlong
