// Sums over the chunks of a sample.
#pragma once

#include <cmath>
#include <limits>

namespace diffast::cpu {

// The sign and payload of a NaN would depend on the order of its operands.
inline double one_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

}  // namespace diffast::cpu
