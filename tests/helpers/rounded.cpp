// csrc/core/rounded.h with units that err: for test_rounded.py. Compiled with the host's fused
// multiply-add.
#include <cmath>
#include <cstdint>

#include "../../csrc/core/normal.h"

namespace {

using diffast::bits_to_float;
using diffast::float_to_bits;

int error;  // of the unit, in ulp

float off(double value) { return bits_to_float(float_to_bits(float(value)) + uint32_t(error)); }

struct Unit {
  static float inverse(float x) { return off(1.0 / double(x)); }
  static float inverse_root(float x) { return off(1.0 / std::sqrt(double(x))); }
  static float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  // The sum in two doubles, which hold it exactly, tells whether the nearest float is below it.
  static float fma_up(float a, float b, float c) {
    const float near = __builtin_fmaf(a, b, c);
    const double product = double(a) * double(b), sum = product + double(c);
    const double part = sum - product;
    const double rest = (product - (sum - part)) + (double(c) - part);
    return double(near) - sum < rest ? std::nextafterf(near, INFINITY) : near;
  }
};

bool same(float a, float b) { return float_to_bits(a) == float_to_bits(b); }

}  // namespace

extern "C" {

// Of every `step`th f that log_uniform divides, how many quotients are wrong; `bad` is the last.
int64_t wrong_quotients(int ulp, uint32_t step, uint32_t* tried, float* bad) {
  error = ulp;
  int64_t wrong = 0;
  *tried = 0;
  for (uint32_t fraction = 0; fraction < 1u << 23; fraction += step, ++*tried) {
    const float f = bits_to_float(fraction + 0x3f3504f3u) - 1.0f, b = 2.0f + f;
    if (same(diffast::quotient_by<Unit>(f, b), f / b)) continue;
    ++wrong;
    *bad = f;
  }
  return wrong;
}

// Of every `step`th uniform number, how many roots of -2 log u are wrong; `bad` is the last square.
int64_t wrong_roots(int ulp, uint32_t step, uint32_t* tried, float* bad) {
  error = ulp;
  int64_t wrong = 0;
  *tried = 0;
  const auto look = [&](float u) {
    ++*tried;
    const float square = diffast::log_uniform(u) * -2.0f;
    if (same(diffast::root_by<Unit>(square), std::sqrt(square))) return;
    ++wrong;
    *bad = square;
  };
  // Below 2^24 each word is a number of its own; above, all floats up to 1 are numbers.
  for (uint32_t word = 0; word < 1u << 24; word += step) look(diffast::to_uniform(word));
  const uint32_t first = float_to_bits(diffast::to_uniform(1u << 24));
  for (uint32_t bits = first; bits < 0x3f800000u; bits += step) look(bits_to_float(bits));
  look(1.0f);
  return wrong;
}

}  // extern "C"
