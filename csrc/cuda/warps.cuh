// Sums over the threads of a warp, in an order that is always the same.
#pragma once

#include <cuda_runtime_api.h>

namespace diffast::cuda {
namespace {

constexpr int kWarp = 32;

// Every thread of the warp calls it; the first one gets the sum.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = value + __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace
}  // namespace diffast::cuda
