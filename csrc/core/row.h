// One element of one row: sum_k weight[k] * x[k]. `combine` has no other arithmetic, but a clamp.
#pragma once

#include "hd.h"

namespace diffast {

// Products and sums are rounded separately, in column order; contraction is off in every build.
template <typename T, int Columns>
DIFFAST_HD T row_dot(const T* weight, const T* x) {
  T sum = weight[0] * x[0];
#pragma GCC unroll 16
  for (int k = 1; k < Columns; ++k) sum = sum + weight[k] * x[k];
  return sum;
}

// The same for a number of columns known only at run time.
template <typename T>
DIFFAST_HD T row_dot_n(const T* weight, const T* x, int columns) {
  T sum = weight[0] * x[0];
  for (int k = 1; k < columns; ++k) sum = sum + weight[k] * x[k];
  return sum;
}

template <typename T>
DIFFAST_HD T clamp_to(T value, T low, T high) {
  // A NaN fails both comparisons and stays NaN.
  value = value < low ? low : value;
  return value > high ? high : value;
}

// A number that the compiler knows.
template <int Number>
struct Known {};

// Returns work(Known<number>()), for a number from Low to High.
template <int Low, int High, typename Work>
inline __attribute__((always_inline)) auto with_known(int number, const Work& work) {
  if constexpr (Low < High)
    if (number != Low) return with_known<Low + 1, High>(number, work);
  return work(Known<Low>());
}

}  // namespace diffast
