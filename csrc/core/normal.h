// The package's normal numbers: Philox words to N(0, 1) by Box-Muller, made only of operations
// whose result IEEE 754 fixes to the last bit (+ - * / sqrt, integer arithmetic, exact
// conversions), each rounded separately. All backends make the same operations and give the same
// bits.
//
// Layout of the counter:
//
//   key     = the seed, 64 bits
//   counter = (block, word, id low, id high)
//     block : element / 4 within the sample; one Philox call serves four neighbouring elements
//     word  : bits  0..25  stage of the plan (or attempt of an adaptive run)
//             bits 26..27  slot: which of the independent noises of that stage (0 .. 3)
//             bits 28..31  purpose: 0 step noise, 1 initial noise, 2 Brownian nodes, 3 couplings
//     id    : the sample's 64-bit id, as two's complement
//
// Nothing else enters: not the batch size, not the position in the batch, not the device.
#pragma once

#include <cmath>

#include "philox.h"
#include "rounded.h"

namespace diffast {

constexpr int kSlotShift = 26;
constexpr int kPurposeShift = 28;
constexpr int64_t kStageLimit = int64_t(1) << kSlotShift;
// A sample has at most so many normals: its blocks are counted with 32 bits.
constexpr int64_t kDrawnLimit = int64_t(1) << 34;

DIFFAST_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DIFFAST_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// (bits + 1/2) / 2^32 rounded once to float32: in [2^-33, 1], never 0. The two 16-bit halves
// convert exactly as signed integers, which every vector unit can do.
DIFFAST_HD float to_uniform(uint32_t bits) {
  const float high = float(int32_t(bits >> 16));
  const float low = float(int32_t(bits & 0xffffu));
  return (high * 65536.0f + low) * 0x1p-32f + 0x1p-33f;
}

// log(u) for u in [2^-33, 1], to about 2 ulp: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt 2),
// s = f / (2 + f), log(1 + f) = 2 s + s z L(z), z = s^2, L fitted to 8e-10 relative.
DIFFAST_HD float log_uniform(float u) {
  constexpr uint32_t sqrt_half = 0x3f3504f3u;
  const uint32_t shifted = float_to_bits(u) - sqrt_half;
  const float exponent = float(int32_t(shifted) >> 23);
  const float f = bits_to_float((shifted & 0x007fffffu) + sqrt_half) - 1.0f;
#if defined(__CUDA_ARCH__)
  const float s = quotient_by<DeviceUnit>(f, 2.0f + f);
#else
  const float s = f / (2.0f + f);
#endif
  const float z = s * s;
  const float series = ((0.29871866f * z + 0.39977537f) * z + 0.66666776f) * z;
  return exponent * 0.6931472f + (s * 2.0f + s * series);
}

struct NormalPair {
  float first, second;
};

// Two normals from two words: radius sqrt(-2 log u) from 32 bits, so that the tail reaches
// |z| = 6.76, and the angle 2 pi bits / 2^32 reduced to [-pi/4, pi/4) about the nearest axis.
DIFFAST_HD NormalPair to_normals(uint32_t radius_bits, uint32_t angle_bits) {
  const float square = log_uniform(to_uniform(radius_bits)) * -2.0f;
#if defined(__CUDA_ARCH__)
  const float radius = root_by<DeviceUnit>(square);
#else
  const float radius = sqrtf(square);
#endif
  const uint32_t quadrant = (angle_bits + 0x20000000u) >> 30;
  const float angle = float(int32_t(angle_bits - (quadrant << 30))) * 1.4629180793e-9f;
  const float z = angle * angle;
  const float sine = angle + angle * (((-0.00019517f * z + 0.00833218f) * z + -0.16666655f) * z);
  const float cosine = (1.0f - 0.5f * z) +
                       ((2.44384136e-05f * z + -1.38873672e-03f) * z + 4.16666469e-02f) * (z * z);
  // Rotate by the quadrant: an odd one swaps sine and cosine, and each sign is set by its bit.
  const bool swap = (quadrant & 1u) != 0;
  const uint32_t cos_bits = float_to_bits(swap ? sine : cosine);
  const uint32_t sin_bits = float_to_bits(swap ? cosine : sine);
  const uint32_t cos_sign = ((quadrant + 1u) & 2u) << 30;
  const uint32_t sin_sign = (quadrant & 2u) << 30;
  return {radius * bits_to_float(cos_bits ^ cos_sign), radius * bits_to_float(sin_bits ^ sin_sign)};
}

struct Normals4 {
  float value[4];
};

// The normals of elements 4 * block .. 4 * block + 3 of one sample. The key is the seed, or the
// RoundKeys of it.
template <typename Key>
DIFFAST_HD Normals4 normals_of_block(uint32_t block, uint32_t word, uint64_t id, const Key& key) {
  const Words w = philox4x32_10({block, word, uint32_t(id), uint32_t(id >> 32)}, key);
  const NormalPair a = to_normals(w.x, w.y);
  const NormalPair b = to_normals(w.z, w.w);
  return {{a.first, a.second, b.first, b.second}};
}

}  // namespace diffast
