// One element of a scaled error, the arithmetic that `combine_error` adds to that of `combine`. The
// CPU's loops take whole vectors for V, where a comparison is a mask: hence | and no ||.
#pragma once

#include <cmath>

#include "../../core/hd.h"

namespace diffast {

template <typename V>
DIFFAST_HD V magnitude(V value) {
  return value < V{} ? -value : value;
}

// The larger one; NaN if either is.
template <typename V>
DIFFAST_HD V larger(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

// e / delta, and 0 where there is no error, even against a tolerance of 0.
template <typename V>
DIFFAST_HD V scaled_error(V error, V delta) {
  return error == V{} ? error : error / delta;
}

DIFFAST_HD double root_mean(double squares, int64_t elements) {
  return sqrt(squares / double(elements));
}

}  // namespace diffast
