// The few lines of PTX that the kernels need, and what they mean in plain C++: a test compiles the
// kernels for the host and runs them there (tests/emulate_cuda.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace diffast::cuda {

#if defined(__CUDACC__)

// Written out: inside the loop over rows the compiler takes a plain assignment apart into four
// stores, and __stwb() orders what needs no order.
__device__ __forceinline__ void store_part(uint4* to, const uint4& part) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(part.x), "r"(part.y), "r"(part.z),
                 "r"(part.w)
               : "memory");
}

__device__ __forceinline__ void store_part(uint2* to, const uint2& part) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(part.x), "r"(part.y)
               : "memory");
}

// The same number, but unknown to the compiler.
__device__ __forceinline__ uint64_t opaque(uint64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

#else

template <typename Part>
inline void store_part(Part* to, const Part& part) {
  *to = part;
}

inline uint64_t opaque(uint64_t value) { return value; }

#endif

}  // namespace diffast::cuda
