// Sums over the threads of a warp, in an order that is always the same.
#pragma once

#include "elements.cuh"

namespace diffast::cuda {
namespace {

// Every thread of the warp calls it; the first one gets the sum.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = value + __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

// The numbers that one sum adds up.
struct Partials {
  const double* first;
  int64_t count;
  int64_t step;
};

// Writes `total` sums; the numbers of a sum are partials(index). A warp takes one.
template <typename Which>
__device__ __forceinline__ void each_sum(double* sums, int64_t total, Which&& partials) {
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < total; first += step) {
    const int64_t at = first + threadIdx.y;
    double sum = 0;
    if (at < total) {
      const Partials of = partials(at);
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < of.count; i += kWarp) sum = sum + of.first[i * of.step];
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0 && at < total) sums[at] = sum;
  }
}

}  // namespace
}  // namespace diffast::cuda
