// float16 and bfloat16 as bit patterns, to and from float32, rounding to nearest even. Vector units
// and GPUs have instructions with the same results; these functions serve where there are none.
#pragma once

#include "normal.h"

namespace diffast {

DIFFAST_HD uint16_t bfloat_bits(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could turn a NaN into infinity: a NaN becomes a quiet NaN of its sign.
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return uint16_t(nan ? (bits >> 16) | 0x40u : rounded);
}

DIFFAST_HD float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t rest = uint32_t(half & 0x7fffu) << 13;
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals exactly.
  const bool special = (half & 0x7c00u) == 0x7c00u;
  const float scaled = bits_to_float(rest) * 0x1p112f;
  return bits_to_float(sign | (special ? rest | 0x7f800000u : float_to_bits(scaled)));
}

DIFFAST_HD uint16_t half_bits(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or beyond
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 1/2 lets the float unit round to 2^-24 steps.
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return uint16_t(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace diffast
