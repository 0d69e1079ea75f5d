// What the kernels of `combine`, `combine_error` and `gram` share: weights in shared memory, the
// rows of a group of elements, the report of a sum that is not finite.
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

// Draws the noises of one group; `draw(word, block)` makes four normals. The loop is not unrolled:
// two copies of Philox cost more than the selects below.
template <int Elements, typename Draw>
__device__ __forceinline__ void draw_noises(int noises, uint32_t word, uint32_t group,
                                            float (&z)[kMaxNoises][Elements], const Draw& draw) {
  constexpr int blocks = Elements / 4;
#pragma unroll 1
  for (int m = 0; m < noises; ++m) {
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      const Normals4 normals = draw(word + (uint32_t(m) << kSlotShift), group * blocks + b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        z[0][4 * b + i] = m == 0 ? normals.value[i] : z[0][4 * b + i];
        z[1][4 * b + i] = normals.value[i];
      }
    }
  }
}

struct DrawNone {};

// Draws with a seed that the thread has read.
struct DrawOfStream {
  const Stream& stream;
  __device__ __forceinline__ Normals4 operator()(uint32_t word, uint32_t block) const {
    // With a known seed the compiler would keep twenty round keys in registers across groups.
    return normals_of_block(block, word, stream.id, opaque(stream.seed));
  }
};

// Draws with keys in the kernel's arguments, which the instructions read where they are.
struct DrawOfKeys {
  const RoundKeys& keys;
  uint64_t id;
  __device__ __forceinline__ Normals4 operator()(uint32_t word, uint32_t block) const {
    return normals_of_block(block, word, id, keys);
  }
};

template <typename T>
struct Limits {
  T low, high;
};

struct KeepNone {
  template <typename T, int Elements>
  __device__ __forceinline__ void operator()(int, const T (&)[Elements]) const {}
};

// NaN once a value is not finite; begins as 0.
__device__ __forceinline__ float spoiled(float so_far, float value) {
  return __fmaf_rn(value, 0.0f, so_far);
}
__device__ __forceinline__ double spoiled(double so_far, double value) {
  return __fma_rn(value, 0.0, so_far);
}

// The weights of rows in shared memory.
template <typename T, int Columns>
struct SharedWeights {
  static constexpr bool kKnownFirst = false;
  const T* first;
  __device__ __forceinline__ const T* row(int r) const {
    return first + r * Slots<Columns>::kStride;
  }
};

// The columns of one group, and the rows that are made of them.
template <typename F, int Columns, bool Noise>
struct Group {
  using T = typename F::Number;
  using S = Slots<Columns>;
  static constexpr int kElements = F::kElements;

  T x[kElements][Columns];
  float z[kMaxNoises][kElements] = {};
  T clamped[kElements] = {};
  T bad = 0;

  // Makes row r with its weights. A later row may have the clamped row as a column.
  template <bool Later, typename Keep>
  __device__ __forceinline__ void row(const CombineCall& a, const T* weight, int r,
                                      const Limits<T>& limits, int64_t offset, int count,
                                      Keep&& keep) {
    T y[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      y[i] = row_dot<T, Columns>(weight, x[i]);
      if (Later && a.clamp && r > 0) y[i] = y[i] + weight[S::kClamped] * clamped[i];
      if (Noise) y[i] = y[i] + weight[S::kNoise] * T(z[0][i]);
      if (Noise && a.noises > 1) y[i] = y[i] + weight[S::kNoise + 1] * T(z[1][i]);
      if (F::kAligned || i < count) bad = spoiled(bad, y[i]);
    }
    if (a.clamp && r == 0) {
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        clamped[i] = y[i] = clamp_to(y[i], limits.low, limits.high);
    }
    keep(r, y);
    if (a.y[r]) F::store(a.y[r], a.y_type[r], offset, count, y);
  }
};

// Makes all rows of group `group` of one sample; returns whether every sum was finite. The group
// begins at element `offset` of the batch and has `count` elements. `keep(row, values)` is called
// for every row; values from `count` on are undefined.
template <typename F, int Columns, bool Noise, typename Weights, typename Draw, typename Keep>
__device__ __forceinline__ bool combine_group(const CombineCall& a, const Weights& weights,
                                              uint32_t word, const Draw& draw,
                                              const Limits<typename F::Number>& limits,
                                              int64_t offset, uint32_t group, int count,
                                              Keep&& keep) {
  using T = typename F::Number;
  typename F::Bits bits[Columns];
#pragma unroll
  for (int k = 0; k < Columns; ++k)
    bits[k] = k < a.inputs ? F::load(a.x[k], a.x_type[k], offset, count) : typename F::Bits{};
  Group<F, Columns, Noise> g;
  if constexpr (Noise) draw_noises(a.noises, word, group, g.z, draw);
#pragma unroll
  for (int k = 0; k < Columns; ++k) {
    T value[F::kElements] = {};
    if (k < a.inputs) F::widen(bits[k], a.x_type[k], value);
#pragma unroll
    for (int i = 0; i < F::kElements; ++i) g.x[i][k] = value[i];
  }
  int r = 0;
  if constexpr (Weights::kKnownFirst) {
    // With a known address the instructions read the weights where they are.
    g.template row<false>(a, weights.row(0), 0, limits, offset, count, keep);
    r = 1;
  }
#pragma unroll 1
  for (; r < a.rows; ++r) g.template row<true>(a, weights.row(r), r, limits, offset, count, keep);
  return g.bad == T(0);
}

// Every thread that finds fault with a sample writes the same stage, and a stage once written
// stays.
__device__ __forceinline__ void report(const CombineCall& a, int64_t sample) {
  using Word = unsigned long long;
  Word* status = reinterpret_cast<Word*>(a.status + sample);
  const Word before = *const_cast<volatile Word*>(status);
  if (int64_t(before) < 0)
    atomicCAS(status, before, Word(stream_of(a, sample).word & (kStageLimit - 1)));
}

// Whether all tensors have one half type and lie so that a thread can take eight elements. More
// inputs than eight would need more registers than there are.
inline bool is_one_half_type(const CombineCall& a) {
  constexpr int per = OneType<DType::kFloat16>::kElements;
  const DType type = a.x_type[0];
  if (!is_half(type) || a.inputs > 8 || a.elements % per != 0) return false;
  const auto fits = [&](const void* base, DType of) {
    return of == type && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  };
  for (int k = 0; k < a.inputs; ++k)
    if (!fits(a.x[k], a.x_type[k])) return false;
  for (int r = 0; r < a.rows; ++r)
    if (a.y[r] && !fits(a.y[r], a.y_type[r])) return false;
  return true;
}

// Returns launch<T, Aligned>() for the arithmetic type of a call, and whether all of its tensors
// are aligned.
template <typename Launch>
cudaError_t launch_rows(const CombineCall& a, const Launch& launch) {
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
