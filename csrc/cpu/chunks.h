// The CPU ops go through a batch in chunks. A chunk is so small that what is prepared for it
// (widened half inputs, normals) stays in the L1 cache.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

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

inline const void* at(const void* base, DType type, int64_t element) {
  const int64_t bytes = type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
  return static_cast<const char*>(base) + element * bytes;
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
