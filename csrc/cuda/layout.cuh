// How threads are laid over a batch, and how a kernel is launched.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "ptx.cuh"

namespace diffast::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Blocks of one launch at most: about 30 for each multiprocessor of the largest GPUs. Larger
// batches are done in a grid-stride loop, so that a block fetches weights once for several groups.
// The tests' emulation has fewer, so that small tensors walk as well.
#ifndef DIFFAST_MOST_BLOCKS
#define DIFFAST_MOST_BLOCKS 4096
#endif
constexpr int64_t kBlocks = DIFFAST_MOST_BLOCKS;

// Threads along x go through the groups of a sample, and threads along y through the samples. So no
// index has to be divided. A launch may have fewer blocks than `grid`: kernels stride over it.
struct Layout {
  dim3 grid, block;
};

// The layout with x threads for a sample or a part of it, and `blocks` such parts.
inline Layout layout_of(int64_t samples, int64_t x, int64_t blocks, int64_t samples_a_block) {
  constexpr int64_t most = 0x7fffffff;
  const int64_t y = std::clamp<int64_t>(kThreads / x, 1, std::min(samples, samples_a_block));
  if (y == 1) x = (x + kWarp - 1) / kWarp * kWarp;
  return {dim3(unsigned(std::min(blocks, most)), unsigned(std::min((samples + y - 1) / y, most))),
          dim3(unsigned(x), unsigned(y))};
}

inline Layout layout_of(int64_t samples, int64_t groups, int64_t samples_a_block = kThreads) {
  const int64_t blocks = (groups + kThreads - 1) / kThreads;
  return layout_of(samples, (groups + blocks - 1) / blocks, blocks, samples_a_block);
}

// A warp for each of so many sums.
inline Layout sums_layout(int64_t total) {
  constexpr int warps = kThreads / kWarp;
  const int64_t blocks = std::min((total + warps - 1) / warps, kBlocks);
  return {dim3(unsigned(blocks)), dim3(kWarp, warps)};
}

// How many blocks of a kernel the current device runs at once; 0 if the runtime cannot tell. The
// answers are kept: asking takes longer than a launch.
inline int64_t blocks_at_once(const void* kernel, int threads, size_t shared) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t>, int64_t> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({kernel, device, threads, shared}, 0);
  int processors = 0, blocks = 0;
  if (is_new &&
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared) ==
          cudaSuccess)
    entry->second = int64_t(processors) * blocks;
  return entry->second;
}

// The grid of at most kBlocks blocks that is launched for `layout`. Where blocks stride, it has a
// whole number of times what the device runs at once, so that no few blocks run alone at the end.
// At least two blocks share the parts of a sample that has several.
inline dim3 strided_grid(const void* kernel, const Layout& layout, size_t shared) {
  const int64_t x = layout.grid.x, y = layout.grid.y;
  int64_t most = kBlocks;
  if (x * y > most / 2) {
    const int threads = int(layout.block.x * layout.block.y);
    const int64_t at_once = blocks_at_once(kernel, threads, shared);
    if (at_once > 0 && at_once < most) most = most / at_once * at_once;
  }
  const int64_t grid_y = std::min(y, most);
  return dim3(unsigned(std::clamp(most / grid_y, std::min<int64_t>(x, 2), x)), unsigned(grid_y));
}

// DIFFAST_SYNC=1: every launch is waited for, so that an error is raised by the op that made it.
inline bool is_debugged() {
  static const bool wanted = [] {
    const char* value = std::getenv("DIFFAST_SYNC");
    return value != nullptr && value[0] == '1' && value[1] == '\0';
  }();
  return wanted;
}

// The launch that a thread made last, for messages.
struct Launched {
  const void* kernel = nullptr;
  dim3 grid, block;
};
inline thread_local Launched last_launched;

// Waits for what was launched, unless the stream is being captured, where nothing runs.
inline cudaError_t wait_for(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess || status != cudaStreamCaptureStatusNone) return error;
  return cudaStreamSynchronize(stream);
}

// Launches exactly this grid. Returns the launch's own error, not one that earlier work left
// behind.
template <typename... Args>
cudaError_t launch_exactly(void (*kernel)(Args...), const Layout& layout, size_t shared,
                           cudaStream_t stream, const Args&... args) {
  void* parameters[] = {const_cast<Args*>(&args)...};
  const void* function = reinterpret_cast<const void*>(kernel);
  announce<Args...>();
  last_launched = {function, layout.grid, layout.block};
  cudaError_t error =
      cudaLaunchKernel(function, layout.grid, layout.block, parameters, shared, stream);
  if (error == cudaSuccess && is_debugged()) error = wait_for(stream);
  if (error != cudaSuccess)
    cudaGetLastError();  // clears it: a later, unrelated check would report it
  return error;
}

template <typename... Args>
cudaError_t launch(void (*kernel)(Args...), const Layout& layout, size_t shared,
                   cudaStream_t stream, const Args&... args) {
  const dim3 grid = strided_grid(reinterpret_cast<const void*>(kernel), layout, shared);
  return launch_exactly(kernel, {grid, layout.block}, shared, stream, args...);
}

}  // namespace diffast::cuda
