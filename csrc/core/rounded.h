// Quotients and roots of the normals on a GPU, rounded as IEEE 754 asks. The compiler's own ones
// serve all numbers; these serve the few that the normals need, without branches. A unit is what
// approximates 1 / b and 1 / sqrt(x). The results are the same for every unit whose error is at
// most 3 ulp: tests/ops/test_rounded.py tries each error with every number that can occur. A GPU's
// units err by at most 1 ulp (1 / b) and by 2^-22.9 of the value (1 / sqrt(x)).
#pragma once

#include "hd.h"

namespace diffast {

// f / b for b = 2 + f, rounded to float32, f of 2^23 values in [sqrt(1/2) - 1, sqrt 2 - 1).
template <typename Unit>
DIFFAST_HD float quotient_by(float f, float b) {
  const float guess = Unit::inverse(b);
  // Rounded up: for b = 2 - 2^-23 an inverse rounded down would leave the last sum a tie.
  const float inverse = Unit::fma_up(guess, Unit::fma(-b, guess, 1.0f), guess);
  const float q = f * inverse;
  return Unit::fma(Unit::fma(-b, q, f), inverse, q);
}

// sqrt(x) rounded to float32, for x = -2 log u: -0, or from 2^-23 to 46. For -0 it is -0.
template <typename Unit>
DIFFAST_HD float root_by(float x) {
  const float least = 0x1p-30f;  // keeps the inverse finite for -0
  const float guess = Unit::inverse_root(x > least ? x : least);
  float root = x * guess, half = 0.5f * guess;
  const float rest = Unit::fma(-half, root, 0.5f);
  root = Unit::fma(root, rest, root);
  half = Unit::fma(half, rest, half);
  return Unit::fma(Unit::fma(-root, root, x), half, root);
}

#if defined(__CUDA_ARCH__)

struct DeviceUnit {
  static __device__ __forceinline__ float inverse(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ float inverse_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ float fma(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
  }
  static __device__ __forceinline__ float fma_up(float a, float b, float c) {
    return __fmaf_ru(a, b, c);
  }
};

#endif

}  // namespace diffast
