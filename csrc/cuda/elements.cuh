// How a thread reads, widens, narrows and writes four neighbouring elements, and how threads are
// laid over a batch. A thread takes four elements at a time everywhere, because one Philox block is
// four numbers and four float32 numbers fill the widest load that every GPU has.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops/combine/args.h"
#include "ptx.cuh"

namespace diffast::cuda {

constexpr int kPerThread = 4;
constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Blocks of one launch at most: about 30 for each multiprocessor of the largest GPUs. Larger
// batches are done in a grid-stride loop, so that a block fetches weights once for several groups.
constexpr int64_t kBlocks = 4096;

// Four elements in one register type, for loads and stores as wide as the hardware has them.
template <typename Bits>
struct Wide {
  using Part = std::conditional_t<sizeof(Bits) == 2, uint2, uint4>;
  Part part[sizeof(Bits) == 8 ? 2 : 1];
};

// Four elements as they are in memory. All columns are loaded before the first is converted.
template <typename T>
struct Raw {
  uint32_t word[kPerThread * sizeof(T) / sizeof(uint32_t)];
};

// Loads elements [offset, offset + count) of `base`. With Aligned, count is 4 and the address is
// aligned for one wide load.
template <typename Bits, bool Aligned, typename T>
__device__ __forceinline__ void load_bits(const void* base, int64_t offset, int count,
                                          Raw<T>* raw) {
  static_assert(sizeof(Bits) <= sizeof(T));
  const Bits* from = static_cast<const Bits*>(base) + offset;
  if constexpr (Aligned) {
    const auto* parts = reinterpret_cast<const typename Wide<Bits>::Part*>(from);
    Wide<Bits> wide;
    for (auto& part : wide.part) part = *parts++;
    memcpy(raw->word, &wide, sizeof wide);
  } else {
    Bits lane[kPerThread] = {};
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      if (i < count) lane[i] = from[i];
    memcpy(raw->word, lane, sizeof lane);
  }
}

template <typename T, bool Aligned>
__device__ __forceinline__ Raw<T> load4(const void* base, DType type, int64_t offset, int count) {
  Raw<T> raw = {};
  if (type == DType::kFloat32) {
    load_bits<uint32_t, Aligned>(base, offset, count, &raw);
  } else if (sizeof(T) == sizeof(double) && type == DType::kFloat64) {
    if constexpr (sizeof(T) == sizeof(double))
      load_bits<uint64_t, Aligned>(base, offset, count, &raw);
  } else {
    load_bits<uint16_t, Aligned>(base, offset, count, &raw);
  }
  return raw;
}

// Exact: every type fits into float32, and float64 comes with float64 arithmetic only.
template <typename T>
__device__ __forceinline__ void widen4(const Raw<T>& raw, DType type, T (&value)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const uint32_t half = raw.word[i / 2] >> (i % 2 * 16) & 0xffffu;
    if (type == DType::kFloat32) {
      value[i] = T(__uint_as_float(raw.word[i]));
    } else if (type == DType::kFloat16) {
      value[i] = T(__half2float(__ushort_as_half(uint16_t(half))));
    } else if (type == DType::kBFloat16) {
      value[i] = T(__uint_as_float(half << 16));
    } else if constexpr (sizeof(T) == sizeof(double)) {
      value[i] = __hiloint2double(int(raw.word[2 * i + 1]), int(raw.word[2 * i]));
    }
  }
}

template <typename Bits, bool Aligned>
__device__ __forceinline__ void store_bits(void* base, int64_t offset, int count,
                                           const Bits (&lane)[kPerThread]) {
  Bits* to = static_cast<Bits*>(base) + offset;
  if constexpr (Aligned) {
    auto* parts = reinterpret_cast<typename Wide<Bits>::Part*>(to);
    Wide<Bits> wide;
    memcpy(&wide, lane, sizeof wide);
    for (const auto& part : wide.part) store_part(parts++, part);
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      if (i < count) to[i] = lane[i];
  }
}

// One rounding to the output's type, to nearest even; float64 goes to a half type by way of
// float32.
template <typename T, bool Aligned>
__device__ __forceinline__ void store4(void* base, DType type, int64_t offset, int count,
                                       const T (&value)[kPerThread]) {
  if (type == DType::kFloat64) {
    uint64_t lane[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) lane[i] = uint64_t(__double_as_longlong(double(value[i])));
    if constexpr (sizeof(T) == sizeof(double))
      store_bits<uint64_t, Aligned>(base, offset, count, lane);
    return;
  }
  if (type == DType::kFloat32) {
    uint32_t lane[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) lane[i] = __float_as_uint(float(value[i]));
    store_bits<uint32_t, Aligned>(base, offset, count, lane);
    return;
  }
  uint16_t lane[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float single = float(value[i]);
    lane[i] = type == DType::kFloat16 ? __half_as_ushort(__float2half_rn(single))
                                      : __bfloat16_as_ushort(__float2bfloat16_rn(single));
  }
  store_bits<uint16_t, Aligned>(base, offset, count, lane);
}

inline bool is_aligned(const void* base, DType type) {
  const bool half = type == DType::kFloat16 || type == DType::kBFloat16;
  return reinterpret_cast<uintptr_t>(base) % (half ? 8 : 16) == 0;
}

// Threads along x go through the groups of a sample, and threads along y through the samples. So no
// index has to be divided.
struct Layout {
  dim3 grid, block;
};

// The layout with x threads for a sample or a part of it, and `blocks` such parts.
inline Layout layout_of(int64_t samples, int64_t x, int64_t blocks, int64_t samples_a_block) {
  const int64_t y = std::clamp<int64_t>(kThreads / x, 1, std::min(samples, samples_a_block));
  if (y == 1) x = (x + kWarp - 1) / kWarp * kWarp;
  const int64_t grid_y = std::min((samples + y - 1) / y, kBlocks);
  const int64_t grid_x = std::min(blocks, std::max<int64_t>(1, kBlocks / grid_y));
  return {dim3(unsigned(grid_x), unsigned(grid_y)), dim3(unsigned(x), unsigned(y))};
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

// Returns the launch's own error, not one that earlier work left behind.
template <typename... Args>
cudaError_t launch(void (*kernel)(Args...), const Layout& layout, size_t shared,
                   cudaStream_t stream, const Args&... args) {
  void* parameters[] = {const_cast<Args*>(&args)...};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), layout.grid,
                                             layout.block, parameters, shared, stream);
  if (error != cudaSuccess)
    cudaGetLastError();  // clears it: a later, unrelated check would report it
  return error;
}

}  // namespace diffast::cuda
