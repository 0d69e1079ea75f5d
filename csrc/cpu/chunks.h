// The CPU ops go through a batch in chunks. A chunk is so small that what is prepared for it
// (widened half inputs, normals) stays in the L1 cache.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../core/half.h"
#include "kernels.h"

namespace diffast::cpu {

constexpr int64_t kChunk = 1024;         // elements, where something is prepared; a multiple of 4
constexpr int64_t kLongChunk = 1 << 15;  // elements, where the rows run on the tensors themselves
constexpr int64_t kGrain = 1 << 15;      // elements a thread should have at least
constexpr int64_t kNoiseGrain = kGrain / 4;  // normals take longer

// Runs work(from, to) over [0, items) on torch's threads; few items are done by the caller itself.
template <typename Work>
void share_out(int64_t items, int64_t grain, const Work& work) {
  if (items <= grain)
    work(int64_t(0), items);
  else
    torch::stable::parallel_for(0, items, grain, work);
}

// The number of chunks of so many elements.
constexpr int64_t chunks_of(int64_t elements, int64_t chunk) {
  return (elements + chunk - 1) / chunk;
}

// Cuts the samples of a batch into chunks and hands them out to torch's threads. A thread has
// `grain` elements at least. It calls work(each), and each(visit) calls
// visit(item, sample, begin, count) for every chunk of the thread.
template <typename Work>
void share_chunks(int64_t samples, int64_t elements, int64_t chunk, int64_t grain,
                  const Work& work) {
  const int64_t chunks = chunks_of(elements, chunk);
  const int64_t average = std::max<int64_t>(1, elements / std::max<int64_t>(1, chunks));
  const auto run = [&](int64_t from, int64_t to) {
    work([&](const auto& visit) {
      for (int64_t item = from; item < to; ++item) {
        const int64_t begin = item % chunks * chunk;
        visit(item, item / chunks, begin, std::min(chunk, elements - begin));
      }
    });
  };
  share_out(samples * chunks, std::max<int64_t>(1, grain / average), run);
}

// Makes every NaN the same: its sign and payload would depend on the order of the operands.
inline double one_nan(double value) {
  return std::isnan(value) ? std::numeric_limits<double>::quiet_NaN() : value;
}

inline const void* at(const void* base, DType type, int64_t element) {
  return static_cast<const char*>(base) + element * dtype_bytes(type);
}

inline void* at(void* base, DType type, int64_t element) {
  return const_cast<void*>(at(static_cast<const void*>(base), type, element));
}

// `count` elements widened (exactly) to float or double.
inline void widen(const Kernels& kernel, DType type, const void* in, float* out, int64_t count) {
  if (type == DType::kFloat16)
    kernel.widen_half(static_cast<const uint16_t*>(in), out, count);
  else
    kernel.widen_bfloat(static_cast<const uint16_t*>(in), out, count);
}

inline void widen(const Kernels& kernel, DType type, const void* in, double* out, int64_t count) {
  float narrow[kChunk];
  const float* from = static_cast<const float*>(in);
  if (type != DType::kFloat32) {
    widen(kernel, type, in, narrow, count);
    from = narrow;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = double(from[i]);
}

// `count` normals of a sample, from element `begin` on.
template <typename T>
void draw(const Kernels& kernel, T* out, int64_t count, int64_t begin, uint32_t word, uint64_t id,
          uint64_t seed) {
  const uint32_t block = uint32_t(begin / 4);
  if constexpr (sizeof(T) == sizeof(float)) {
    kernel.normals(out, count, block, word, id, seed);
  } else {
    float single[kChunk];
    kernel.normals(single, count, block, word, id, seed);
    widen(kernel, DType::kFloat32, single, out, count);
  }
}

// `count` results rounded to the output's type; float64 goes to a half type by way of float32.
inline void narrow(const Kernels& kernel, DType type, const float* in, void* out, int64_t count) {
  if (type == DType::kFloat16)
    kernel.narrow_half(in, static_cast<uint16_t*>(out), count);
  else if (type == DType::kBFloat16)
    kernel.narrow_bfloat(in, static_cast<uint16_t*>(out), count);
  else
    memcpy(out, in, count * sizeof(float));
}

inline void narrow(const Kernels& kernel, DType type, const double* in, void* out, int64_t count) {
  if (type == DType::kFloat64) {
    memcpy(out, in, count * sizeof(double));
    return;
  }
  float single[kChunk];
  for (int64_t i = 0; i < count; ++i) single[i] = float(in[i]);
  narrow(kernel, type, single, out, count);
}

}  // namespace diffast::cpu
