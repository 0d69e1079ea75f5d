// Magnitudes as whole numbers, for `quantile`. The bit pattern of a float without its sign orders
// magnitudes as an unsigned integer does: 0, subnormals, normals, infinity, NaN. A key is that
// pattern.
#pragma once

#include <type_traits>

#include "../../core/hd.h"

namespace diffast {

template <typename T>
using Key = std::conditional_t<sizeof(T) == sizeof(float), uint32_t, uint64_t>;

template <typename T>
constexpr int kKeyBits = 8 * sizeof(T) - 1;
// The keys of NaN are greater.
template <typename T>
constexpr Key<T> kInfinityKey =
    sizeof(T) == sizeof(float) ? Key<T>(0x7f800000) : Key<T>(0x7ff0000000000000);

// The keys are told apart by so many bits at a time, from the highest bit on.
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// How many bits of a key stand behind its first digits, when `shift` bits stood behind those
// before.
constexpr int next_shift(int shift) { return shift > kDigitBits ? shift - kDigitBits : 0; }

template <typename T>
DIFFAST_HD Key<T> key_of(T value) {
  Key<T> key;
  memcpy(&key, &value, sizeof key);
  return key & (Key<T>(~Key<T>(0)) >> 1);
}

template <typename T>
DIFFAST_HD double magnitude_of(Key<T> key) {
  T value;
  memcpy(&value, &key, sizeof value);
  return double(value);
}

// The number between two order statistics, of which `below` is not the greater one. The formula is
// numpy's; it has no NaN for an infinite `above`.
DIFFAST_HD double between(double below, double above, double weight) {
  const double step = above - below;
  if (weight == 0.0 || below == above) return below;
  if (step - step != 0.0) return above;  // infinity
  return weight < 0.5 ? below + step * weight : above - step * (1.0 - weight);
}

}  // namespace diffast
