// What all sums over chunks need.
#pragma once

#include <cmath>
#include <limits>

namespace diffast::cpu {

// Makes every NaN the same: its sign and payload would depend on the order of the operands.
inline double one_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

}  // namespace diffast::cpu
