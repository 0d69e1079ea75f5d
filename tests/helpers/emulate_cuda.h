// A stand-in for the CUDA runtime: kernels and launchers compiled for the host and run there thread
// by thread, so that indices, masks, shared memory and the grid are tested without a GPU. Every
// CUDA thread is a fiber that runs to the next barrier; fibers take turns in an order that a seed
// shuffles, so results that depend on the order of threads differ between seeds. Included before
// the .cu files of one library.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace emulated {

constexpr size_t kStack = size_t(64) << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};  // not cleared: 16 MiB for a block of 256
  uint3 thread;
  bool finished;
};

uint3 thread, block;
dim3 block_dim, grid_dim;
ucontext_t scheduler;
Fiber* current;
void (*body)();
std::mt19937_64 shuffle{0};
int64_t launches[4];  // launches, blocks, threads, barriers of one thread

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulate_cuda: %s\n", what);
  std::abort();
}

void yield() { swapcontext(&current->context, &scheduler); }

void enter() {
  body();
  current->finished = true;
  yield();
}

// One block: every thread to the first barrier, then every thread to the second, and so on.
void run_block(std::vector<Fiber>& fibers) {
  std::vector<Fiber*> order;
  for (Fiber& fiber : fibers) {
    fiber.finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
    order.push_back(&fiber);
  }
  for (bool running = true; running; ++launches[3]) {
    std::shuffle(order.begin(), order.end(), shuffle);
    for (Fiber* fiber : order) {
      current = fiber;
      thread = fiber->thread;
      swapcontext(&scheduler, &fiber->context);
    }
    running = !order.front()->finished;
    for (Fiber* fiber : order)
      check(fiber->finished != running, "some threads of a block left while others waited");
  }
}

void run_grid(unsigned char* shared, size_t shared_bytes, dim3 grid, dim3 threads) {
  grid_dim = grid;
  block_dim = threads;
  static std::vector<Fiber> fibers;  // kept between launches, with their stacks
  fibers.resize(size_t(threads.x) * threads.y);
  for (unsigned y = 0; y < threads.y; ++y)
    for (unsigned x = 0; x < threads.x; ++x) fibers[y * threads.x + x].thread = {x, y, 0};
  launches[0] += 1;
  launches[1] += int64_t(grid.x) * grid.y;
  launches[2] += int64_t(grid.x) * grid.y * int64_t(fibers.size());
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block = {x, y, 0};
      std::memset(shared, 0xff, shared_bytes);  // NaN, until the kernel writes
      run_block(fibers);
    }
  }
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
#define __syncthreads emulated::yield
#define __uint_as_float emulated::as<float, uint32_t>
#define __float_as_uint emulated::as<uint32_t, float>
#define __double_as_longlong emulated::as<long long, double>
#define __hiloint2double emulated::join

namespace emulated {

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

inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long old,
                                    unsigned long long value) {
  const unsigned long long before = *at;
  if (before == old) *at = value;
  return before;
}

inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = before + value;
  return before;
}

// The device's functions of these names round once, as those of the host do.
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// All threads of a block shuffle together: each leaves its number, then takes another one's.
inline double __shfl_down_sync(unsigned mask, double value, int distance) {
  static double left[1024];
  emulated::check(mask == 0xffffffffu, "a shuffle without some of the warp");
  const unsigned me = threadIdx.y * blockDim.x + threadIdx.x;
  emulated::check(blockDim.x * blockDim.y % 32 == 0, "a shuffle in a block of broken warps");
  left[me] = value;
  __syncthreads();
  const double other = me % 32 + distance < 32 ? left[me + distance] : value;
  __syncthreads();
  return other;
}

using std::min;

#include "../../csrc/cuda/elements.cuh"

namespace diffast::cuda {
namespace {

alignas(16) unsigned char shared[48 << 10];  // the kernels' extern array

// What the threads of the launched grid call.
const void* launched;
void** launched_with;

}  // namespace
}  // namespace diffast::cuda

extern "C" cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 threads, void** args,
                                        size_t shared_bytes, cudaStream_t) {
  using namespace diffast;
  emulated::check(grid.x > 0 && grid.y > 0 && grid.y <= 65535 && grid.z == 1, "a bad grid");
  emulated::check(
      threads.x > 0 && threads.y > 0 && threads.x * threads.y <= cuda::kThreads && threads.z == 1,
      "a bad block");
  emulated::check(shared_bytes <= sizeof cuda::shared, "too much shared memory");
  cuda::launched = kernel;
  cuda::launched_with = args;
  emulated::body = [] { cuda::call_announced(cuda::launched, cuda::launched_with); };
  emulated::run_grid(cuda::shared, sizeof cuda::shared, grid, threads);
  return cudaSuccess;
}

extern "C" cudaError_t cudaGetLastError() { return cudaSuccess; }
extern "C" cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) {
  return cudaSuccess;
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// The numbers of an H100 with kernels of 48 registers.
extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;
  return cudaSuccess;
}
extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                                     size_t) {
  *blocks = 5;
  return cudaSuccess;
}

// What ran since the last call, and a new order of threads.
extern "C" void emulated_reset(uint64_t seed, int64_t* launches) {
  std::copy(std::begin(emulated::launches), std::end(emulated::launches), launches);
  std::fill(std::begin(emulated::launches), std::end(emulated::launches), 0);
  emulated::shuffle.seed(seed);
}
