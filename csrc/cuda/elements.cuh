// How a thread reads, widens, narrows and writes neighbouring elements. It takes four at a time,
// because one Philox block is four numbers and four float32 numbers fill the widest load that every
// GPU has; of half types alone it takes eight.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops/combine/args.h"
#include "layout.cuh"

namespace diffast::cuda {

constexpr int kPerThread = 4;

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

inline bool is_half(DType type) { return type == DType::kFloat16 || type == DType::kBFloat16; }

inline bool is_aligned(const void* base, DType type) {
  return reinterpret_cast<uintptr_t>(base) % (is_half(type) ? 8 : 16) == 0;
}

// What a kernel knows of the tensors when it is compiled. `Number` is the type of its arithmetic, a
// thread takes `kElements` at a time.

// The type of each tensor is known when the kernel runs.
template <typename T, bool Aligned>
struct AnyTypes {
  using Number = T;
  using Bits = Raw<T>;
  static constexpr int kElements = kPerThread;
  static constexpr bool kAligned = Aligned;

  static __device__ __forceinline__ Bits load(const void* base, DType type, int64_t offset,
                                              int count) {
    return load4<T, Aligned>(base, type, offset, count);
  }
  static __device__ __forceinline__ void widen(const Bits& bits, DType type,
                                               T (&value)[kElements]) {
    widen4(bits, type, value);
  }
  static __device__ __forceinline__ void store(void* base, DType type, int64_t offset, int count,
                                               const T (&value)[kElements]) {
    store4<T, Aligned>(base, type, offset, count, value);
  }
};

// All tensors are of this half type, at multiples of 16 bytes, and a sample is a whole number of
// eight elements, which fill the widest load.
template <DType Type>
struct OneType {
  using Number = float;
  struct Bits {
    uint32_t word[4];
  };
  static constexpr int kElements = 8;
  static constexpr bool kAligned = true;
  static_assert(Type == DType::kFloat16 || Type == DType::kBFloat16);

  static __device__ __forceinline__ Bits load(const void* base, DType, int64_t offset, int) {
    const uint4 part = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + offset);
    return {{part.x, part.y, part.z, part.w}};
  }
  static __device__ __forceinline__ void widen(const Bits& bits, DType, float (&value)[kElements]) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const uint32_t word = bits.word[i / 2];
      if constexpr (Type == DType::kFloat16)
        value[i] = __half2float(__ushort_as_half(uint16_t(i % 2 ? word >> 16 : word & 0xffffu)));
      else
        value[i] = __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
    }
  }
  static __device__ __forceinline__ uint32_t narrow(float value) {
    if constexpr (Type == DType::kFloat16) return __half_as_ushort(__float2half_rn(value));
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  static __device__ __forceinline__ void store(void* base, DType, int64_t offset, int,
                                               const float (&value)[kElements]) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = narrow(value[2 * i]) | narrow(value[2 * i + 1]) << 16;
    store_part(reinterpret_cast<uint4*>(static_cast<uint16_t*>(base) + offset),
               uint4{word[0], word[1], word[2], word[3]});
  }
};

}  // namespace diffast::cuda
