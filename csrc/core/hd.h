// How a function is marked when it is compiled for the host and for the device from one source.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
// nvcc warns of the pragma "GCC unroll", which it does not know; it unrolls those loops without it.
#pragma nv_diag_suppress 1675
#define DIFFAST_HD __host__ __device__ __forceinline__
#else
// The CPU kernels are compiled once for each instruction set. Without always_inline the linker
// could keep one copy of a function, compiled for one instruction set, and use it in all of them.
#define DIFFAST_HD inline __attribute__((always_inline))
#endif
