// A quotient that is rounded up.
#pragma once

namespace everlong::cuda {

// Of a number that is not negative by a positive one; it fits an int.
template <class A, class B>
constexpr int CeilDiv(A a, B b) {
  return static_cast<int>((a + b - 1) / b);
}

}  // namespace everlong::cuda
