// What the kernels of `combine`, `combine_error` and `gram` share: weights in shared memory, the
// rows of a group of four elements, the report of a sum that is not finite.
#pragma once

#include "../core/normal.h"
#include "../core/row.h"
#include "elements.cuh"

namespace diffast::cuda {
namespace {

// Shared memory for the weights of a block: 16 KiB leave the L1 cache to the data.
constexpr int64_t kSharedBytes = int64_t(16) << 10;

// One row of weights in shared memory: the inputs, padded to the template's number of columns, the
// clamped row, the noises; padded once more so that a row starts at 16 bytes.
template <int Columns>
struct Slots {
  static constexpr int kClamped = Columns;
  static constexpr int kNoise = Columns + 1;
  static constexpr int kStride = (Columns + 1 + kMaxNoises + 3) / 4 * 4;
};

// The weights of samples [first, first + copies), rounded to the arithmetic type once a block.
template <typename T, int Columns>
__device__ __forceinline__ void fill_weights(const CombineArgs& a, int64_t first, int copies,
                                             T* shared) {
  using S = Slots<Columns>;
  const int width = a.inputs + (a.clamp ? 1 : 0);
  const double* weight = a.weight_table ? a.weight_table + first * a.rows * width : a.weight;
  const double* noise = a.noise_table ? a.noise_table + first * a.rows * a.noises : a.noise;
  const int step = int(blockDim.x * blockDim.y);
#pragma unroll 1
  for (int i = int(threadIdx.y * blockDim.x + threadIdx.x); i < copies * a.rows * S::kStride;
       i += step) {
    const int row = i / S::kStride;
    const int slot = i % S::kStride;
    // A padded column is -0 * 0 = -0. Adding -0 changes no number, not even the sign of a zero.
    T value = T(-0.0);
    if (slot < a.inputs)
      value = T(weight[row * width + slot]);
    else if (slot == S::kClamped && a.clamp)
      value = T(weight[row * width + a.inputs]);
    else if (slot >= S::kNoise && slot - S::kNoise < a.noises)
      value = T(noise[row * a.noises + slot - S::kNoise]);
    shared[i] = value;
  }
}

// The same for the samples of a block from `first` on; returns the weights of the thread's sample.
template <typename T, int Columns>
__device__ __forceinline__ const T* block_weights(const CombineArgs& a, int64_t first, T* shared) {
  __syncthreads();  // other threads may still read the previous samples' weights
  fill_weights<T, Columns>(a, first, int(min(int64_t(blockDim.y), a.samples - first)), shared);
  __syncthreads();
  return shared + threadIdx.y * a.rows * Slots<Columns>::kStride;
}

// Draws the noises of one group. The loop is not unrolled: two copies of Philox cost more than the
// selects below.
__device__ __forceinline__ void draw_noises(const Stream& stream, int noises, uint32_t block,
                                            float (&z)[kMaxNoises][kPerThread]) {
#pragma unroll 1
  for (int m = 0; m < noises; ++m) {
    const uint32_t word = stream.word + (uint32_t(m) << kSlotShift);
    // With a known seed the compiler would keep twenty round keys in registers across groups.
    const Normals4 normals = normals_of_block(block, word, stream.id, opaque(stream.seed));
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      z[0][i] = m == 0 ? normals.value[i] : z[0][i];
      z[1][i] = normals.value[i];
    }
  }
}

template <typename T>
struct Limits {
  T low, high;
};

struct KeepNone {
  template <typename T>
  __device__ __forceinline__ void operator()(int, const T (&)[kPerThread]) const {}
};

// Makes all rows of group `block` of one sample; returns whether every sum was finite. The group
// begins at element `offset` of the batch and has `count` elements. `keep(row, values)` is called
// for every row; values from `count` on are undefined.
template <typename T, int Columns, bool Aligned, bool Noise, typename Keep>
__device__ __forceinline__ bool combine_group(const CombineArgs& a, const T* weights,
                                              const Stream& stream, const Limits<T>& limits,
                                              int64_t offset, uint32_t block, int count,
                                              Keep&& keep) {
  using S = Slots<Columns>;
  Raw<T> raw[Columns];
#pragma unroll
  for (int k = 0; k < Columns; ++k)
    raw[k] = k < a.inputs ? load4<T, Aligned>(a.x[k], a.x_type[k], offset, count) : Raw<T>{};
  float z[kMaxNoises][kPerThread] = {};
  if constexpr (Noise) draw_noises(stream, a.noises, block, z);
  T x[kPerThread][Columns];
#pragma unroll
  for (int k = 0; k < Columns; ++k) {
    T value[kPerThread] = {};
    if (k < a.inputs) widen4(raw[k], a.x_type[k], value);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) x[i][k] = value[i];
  }
  T clamped[kPerThread] = {};
  bool finite = true;
#pragma unroll 1
  for (int r = 0; r < a.rows; ++r) {
    const T* weight = weights + r * S::kStride;
    T y[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      y[i] = row_dot<T, Columns>(weight, x[i]);
      if (a.clamp && r > 0) y[i] = y[i] + weight[S::kClamped] * clamped[i];
      if (Noise) y[i] = y[i] + weight[S::kNoise] * T(z[0][i]);
      if (Noise && a.noises > 1) y[i] = y[i] + weight[S::kNoise + 1] * T(z[1][i]);
      if (Aligned || i < count) finite = finite && y[i] - y[i] == T(0);
    }
    if (a.clamp && r == 0) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
        clamped[i] = y[i] = clamp_to(y[i], limits.low, limits.high);
    }
    keep(r, y);
    if (a.y[r]) store4<T, Aligned>(a.y[r], a.y_type[r], offset, count, y);
  }
  return finite;
}

// Every thread that finds fault with a sample writes the same stage, and a stage once written
// stays.
__device__ __forceinline__ void report(const CombineArgs& a, int64_t sample) {
  using Word = unsigned long long;
  Word* status = reinterpret_cast<Word*>(a.status + sample);
  const Word before = *const_cast<volatile Word*>(status);
  if (int64_t(before) < 0)
    atomicCAS(status, before, Word(stream_of(a, sample).word & (kStageLimit - 1)));
}

// Returns launch<T, Aligned>() for the arithmetic type of a call, and whether all of its tensors
// are aligned.
template <typename Launch>
cudaError_t launch_rows(const CombineArgs& a, const Launch& launch) {
  bool aligned = a.elements % kPerThread == 0;
  for (int k = 0; k < a.inputs; ++k) aligned = aligned && is_aligned(a.x[k], a.x_type[k]);
  for (int r = 0; r < a.rows; ++r) aligned = aligned && is_aligned(a.y[r], a.y_type[r]);
  if (a.wide)
    return aligned ? launch.template operator()<double, true>()
                   : launch.template operator()<double, false>();
  return aligned ? launch.template operator()<float, true>()
                 : launch.template operator()<float, false>();
}

}  // namespace
}  // namespace diffast::cuda
