// Element types in host memory: conversion of single values, exact or rounded to nearest even.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "kernels/args.h"

namespace everlong {

// The plain types, as people write them.
inline constexpr std::pair<std::string_view, DType> kPlainTypes[] = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}, {"fp8", DType::kF8}};

inline float BF16ToF32(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

inline uint16_t F32ToBF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float F16ToF32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00)
    return std::bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
  // Shifted into place the exponent is 112 too small; the product also normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

inline uint16_t F32ToF16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00;  // rounds to 2^16 or above
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing is 2^-24: adding 0.5, whose spacing is 2^-24 too, rounds to it.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(rounded) - 0x3F000000u);
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return sign | static_cast<uint16_t>((magnitude + 0xFFF + odd - 0x38000000u) >> 13);
}

// E4M3 has no infinity; all bits of exponent and mantissa set are NaN.
inline float F8ToF32(uint8_t bits) {
  const uint32_t sign = uint32_t{bits & 0x80u} << 24;
  const uint32_t magnitude = bits & 0x7Fu;
  if (magnitude == 0x7F) return std::bit_cast<float>(sign | 0x7FC00000u);
  // Shifted into place the exponent is 120 too small; the product also normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// Past the largest, 448, values become 448.
inline uint8_t F32ToF8(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7F;
  if (magnitude >= 0x43E00000u) return sign | 0x7E;
  if (magnitude < 0x3C800000u) {
    // Below 2^-6 the spacing is 2^-9: adding 2^14, whose spacing is 2^-9 too, rounds to it.
    const float rounded = std::bit_cast<float>(magnitude) + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(rounded) - 0x46800000u);
  }
  const uint32_t odd = (magnitude >> 20) & 1;
  return sign | static_cast<uint8_t>((magnitude + 0x7FFFF + odd - 0x3C000000u) >> 20);
}

// One element of a plain type, at any byte.
inline float ReadElement(const std::byte* from, DType type) {
  if (type == DType::kF8) return F8ToF32(static_cast<uint8_t>(*from));
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return type == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

inline void WriteElement(std::byte* to, DType type, float value) {
  if (type == DType::kF8) {
    *to = static_cast<std::byte>(F32ToF8(value));
    return;
  }
  if (type == DType::kF32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = type == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

}  // namespace everlong
