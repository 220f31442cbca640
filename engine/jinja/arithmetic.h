// Python's operators on numbers, texts and lists.
#pragma once

#include <cstdint>

#include "engine/jinja/heap.h"
#include "engine/jinja/value.h"

namespace everlong::jinja {

enum class Arithmetic : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
};

// Error for operands that Python refuses and for integers that leave 64 bits.
Value Apply(Heap& heap, Arithmetic operation, const Value& a, const Value& b);
Value Negate(const Value& value);

}  // namespace everlong::jinja
