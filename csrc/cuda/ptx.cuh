// The few lines of PTX that the kernels need, and the same in plain C++ for the tests, which
// compile the kernels for the host and run them there (tests/helpers/emulate_cuda.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

namespace diffast::cuda {

#if defined(__CUDACC__)

// Written in PTX because the compiler splits a plain assignment inside the loop over rows into four
// stores, and __stwb() adds an ordering that is not needed.
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

// Tells the tests' stand-in for a GPU how the next kernel is called.
template <typename... Args>
void announce() {}

// Returns the same number, about which the compiler then knows nothing.
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

// Calls the kernel that was announced last.
inline void (*call_announced)(const void* kernel, void** parameters);

template <typename... Args>
void announce() {
  call_announced = [](const void* kernel, void** parameters) {
    [&]<size_t... At>(std::index_sequence<At...>) {
      reinterpret_cast<void (*)(Args...)>(const_cast<void*>(kernel))(
          *static_cast<const Args*>(parameters[At])...);
    }(std::index_sequence_for<Args...>{});
  };
}

#endif

}  // namespace diffast::cuda
