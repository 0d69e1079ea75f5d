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

DIFFAST_HD Words philox_round(Words c, uint32_t key_lo, uint32_t key_hi) {
  const uint64_t px = uint64_t(kPhiloxMulX) * c.x;
  const uint64_t pz = uint64_t(kPhiloxMulZ) * c.z;
  return {uint32_t(pz >> 32) ^ c.y ^ key_lo, uint32_t(pz), uint32_t(px >> 32) ^ c.w ^ key_hi,
          uint32_t(px)};
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

}  // namespace diffast
