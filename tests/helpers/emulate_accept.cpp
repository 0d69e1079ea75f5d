// `accept` on CUDA, compiled for the host and run there thread by thread, in an order that a seed
// shuffles over the whole grid: its kernels have no barrier. Op: diffast_emulated_accept::accept.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace emulated {

uint3 thread, block;
dim3 block_dim, grid_dim;
std::mt19937_64 shuffle{0};
int64_t launches, units;  // units: bytes of what the last copy moves at a time

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulate_accept: %s\n", what);
  std::abort();
}

template <typename To, typename From>
To as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline double join(int high, int low) {
  return as<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

}  // namespace emulated

#define __launch_bounds__(...)
#if !defined(__grid_constant__)
#define __grid_constant__
#endif
#define threadIdx emulated::thread
#define blockIdx emulated::block
#define blockDim emulated::block_dim
#define gridDim emulated::grid_dim
#define __uint_as_float emulated::as<float, uint32_t>
#define __float_as_uint emulated::as<uint32_t, float>
#define __double_as_longlong emulated::as<long long, double>
#define __hiloint2double emulated::join

#include "../../csrc/ops/accept/checks.h"
#include "../../csrc/ops/accept/cuda.cu"

namespace diffast::cuda {
namespace {

void run_accept(AcceptArgs* args, const Tensor&) {
  std::vector<int32_t> route(size_t(args->samples), 0x7fffffff);
  args->route = route.data();
  STD_TORCH_CHECK(launch_accept(*args, nullptr) == cudaSuccess, "accept: not launched");
}

// Bytes of what a copy kernel moves at a time; 0 for another kernel.
int64_t units_of(const void* kernel) {
  const auto is = [&](auto copy) { return kernel == reinterpret_cast<const void*>(copy); };
  return is(copy_kernel<uint4>)      ? 16
         : is(copy_kernel<uint32_t>) ? 4
                                     : is(copy_kernel<uint16_t>) * 2;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_accept, CPU, m) {
  m.impl("accept", TORCH_BOX(&accept<run_accept>));
}

}  // namespace diffast::cuda

extern "C" cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 threads, void** args,
                                        size_t shared_bytes, cudaStream_t) {
  using namespace emulated;
  check(grid.x > 0 && grid.y > 0 && grid.y <= 65535 && grid.z == 1, "a bad grid");
  check(threads.x > 0 && threads.y > 0 && threads.z == 1 &&
            threads.x * threads.y <= diffast::cuda::kThreads && shared_bytes == 0,
        "a bad block");
  launches += 1;
  grid_dim = grid;
  block_dim = threads;
  const uint64_t in_block = uint64_t(threads.x) * threads.y;
  std::vector<uint64_t> order(uint64_t(grid.x) * grid.y * in_block);
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), shuffle);
  for (const uint64_t i : order) {
    const uint64_t lane = i % in_block, number = i / in_block;
    thread = {unsigned(lane % threads.x), unsigned(lane / threads.x), 0};
    block = {unsigned(number % grid.x), unsigned(number / grid.x), 0};
    diffast::cuda::call_announced(kernel, args);
  }
  if (const int64_t bytes = diffast::cuda::units_of(kernel)) units = bytes;
  return cudaSuccess;
}

extern "C" cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" cudaError_t cudaGetDevice(int*) { return cudaErrorNoDevice; }
extern "C" cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) {
  return cudaErrorNoDevice;
}
extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int*, const void*, int,
                                                                     size_t) {
  return cudaErrorNoDevice;
}
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) {
  return cudaSuccess;
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// What ran since the last call, and a new order of threads.
extern "C" void emulated_accept_reset(uint64_t seed, int64_t* counts) {
  counts[0] = emulated::launches;
  counts[1] = emulated::units;
  emulated::launches = emulated::units = 0;
  emulated::shuffle.seed(seed);
}
