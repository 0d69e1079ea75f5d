// Sums over the threads of a warp, in an order that is always the same.
#pragma once

#include "elements.cuh"

namespace diffast::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Every thread of the warp calls it; the first one gets the sum.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = value + __shfl_down_sync(kAllLanes, value, distance);
  return value;
}

// The sum of `count` parts, at most eight, in the order of `tree_sum`.
template <typename Sum, typename Add>
__device__ __forceinline__ Sum tree_of_eight(const Sum* parts, int count, const Add& add) {
  Sum part[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) part[i] = i < count ? parts[i] : Sum{};
#pragma unroll
  for (int distance = 1; distance < 8; distance *= 2)
#pragma unroll
    for (int i = 0; i < 8; i += 2 * distance) part[i] = add(part[i], part[i + distance]);
  return part[0];
}

// Adds up what the threads of one row of a block have: first pairs, then pairs of pairs, and so on.
// `add(a, b)` is the sum of two; `add.below(sum, distance)` is what the thread `distance` further
// on has. `Sum{}` is the sum of nothing, and adding it changes no bit. A row has a power of two of
// at most 32 threads, or whole warps, at most eight; a block has whole warps. Every thread of the
// block calls it; the thread with x = 0 gets the sum. No thread may still read `parts`, eight sums
// in shared memory: two such places in turn suffice.
template <typename Sum, typename Add>
__device__ __forceinline__ Sum tree_sum(Sum mine, Sum* parts, const Add& add) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2)
    if (distance < int(blockDim.x)) mine = add(mine, add.below(mine, distance));
  if (blockDim.x <= kWarp) return mine;
  const int at = int(threadIdx.y * blockDim.x + threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) parts[at] = mine;
  __syncthreads();
  return threadIdx.x == 0 ? tree_of_eight(parts + at, int(blockDim.x) / kWarp, add) : mine;
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
