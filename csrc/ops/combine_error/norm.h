// The arithmetic that `combine_error` adds to `combine`: one element of a scaled error. V is a
// number, or a vector in the CPU's loops. There a comparison gives a mask, so conditions are joined
// by | and not by ||.
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

// e / delta; 0 where e is 0, even if delta is 0 too.
template <typename V>
DIFFAST_HD V scaled_error(V error, V delta) {
  return error == V{} ? error : error / delta;
}

DIFFAST_HD double root_mean(double squares, int64_t elements) {
  return sqrt(squares / double(elements));
}

}  // namespace diffast
