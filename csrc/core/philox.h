// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011), section 3.3 and table 2: four 32-bit words out for a
// 128-bit counter and a 64-bit key.
#pragma once

#include "hd.h"

namespace diffast {

struct Words {
  uint32_t x, y, z, w;
};

constexpr uint32_t kPhiloxMulX = 0xD2511F53u;
constexpr uint32_t kPhiloxMulZ = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeylLo = 0x9E3779B9u;  // golden ratio
constexpr uint32_t kPhiloxWeylHi = 0xBB67AE85u;  // sqrt(3) - 1
constexpr int kPhiloxRounds = 10;

struct Product {
  uint32_t high, low;
};

DIFFAST_HD Product product_of(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // Of a 64-bit product nvcc also adds up the factors' upper halves, which are zero.
  return {__umulhi(a, b), a * b};
#else
  const uint64_t product = uint64_t(a) * b;
  return {uint32_t(product >> 32), uint32_t(product)};
#endif
}

DIFFAST_HD Words philox_round(Words c, uint32_t key_lo, uint32_t key_hi) {
  const Product x = product_of(kPhiloxMulX, c.x);
  const Product z = product_of(kPhiloxMulZ, c.z);
  return {z.high ^ c.y ^ key_lo, z.low, x.high ^ c.w ^ key_hi, x.low};
}

DIFFAST_HD Words philox4x32_10(Words counter, uint64_t key) {
  uint32_t lo = uint32_t(key);
  uint32_t hi = uint32_t(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, lo, hi);
    lo += kPhiloxWeylLo;
    hi += kPhiloxWeylHi;
  }
  return counter;
}

// The keys of all rounds, for callers that make many calls with one key.
struct RoundKeys {
  uint32_t lo[kPhiloxRounds], hi[kPhiloxRounds];
};

DIFFAST_HD RoundKeys round_keys(uint64_t key) {
  RoundKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.lo[round] = uint32_t(key) + uint32_t(round) * kPhiloxWeylLo;
    keys.hi[round] = uint32_t(key >> 32) + uint32_t(round) * kPhiloxWeylHi;
  }
  return keys;
}

DIFFAST_HD Words philox4x32_10(Words counter, const RoundKeys& keys) {
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round)
    counter = philox_round(counter, keys.lo[round], keys.hi[round]);
  return counter;
}

}  // namespace diffast
