// The kernels of `combine` on CUDA. A thread takes four or eight neighbouring elements of all
// columns into registers, then makes one row after the other and writes it: an output may therefore
// be an input. Weights that the host gives are kernel arguments, in the arithmetic type already, so
// a block begins with its loads. Weights of a table go to shared memory first, and so do the host's
// where tensors are unaligned or float64: those are rare and have fewer instances.
#pragma once

#include "../../cuda/rows.cuh"

namespace diffast::cuda {

// Serves calls whose tensors all have one half type: in cuda_half.cu.
cudaError_t launch_combine_half(const CombineArgs& args, cudaStream_t stream);

namespace {

// How many blocks a multiprocessor must have registers for: enough for 24 KiB of loads under way.
// Without this number ptxas gives some instances fewer registers than they need, and they spill.
template <typename F, int Columns, bool Noise>
constexpr int resident() {
  if (sizeof(typename F::Number) == sizeof(double)) return 1;
  if (F::kElements > kPerThread) {
    if (Noise) return Columns <= 2 ? 3 : 2;
    return Columns == 1 ? 5 : Columns == 2 ? 4 : Columns <= 4 ? 3 : 2;
  }
  if (Noise) return Columns <= 4 ? 3 : 2;
  return Columns <= 2 ? 5 : Columns <= 4 ? 4 : Columns <= 6 ? 3 : 2;
}

// A call whose weights are kernel arguments.
template <typename T, int Columns>
struct HostCall {
  CombineCall rows;
  T weight[kMaxRows][Slots<Columns>::kStride];
  RoundKeys keys;
};

template <typename T, int Columns>
struct HostWeights {
  static constexpr bool kKnownFirst = true;
  const HostCall<T, Columns>& call;
  __device__ __forceinline__ const T* row(int r) const { return call.weight[r]; }
};

// Makes the thread's groups of one sample; returns whether every sum was finite.
template <typename F, int Columns, bool Noise, typename Weights, typename Draw>
__device__ __forceinline__ bool make_groups(const CombineCall& a, const Weights& weights,
                                            uint32_t word, const Draw& draw, int64_t sample) {
  using T = typename F::Number;
  constexpr int per = F::kElements;
  const Limits<T> limits = {T(a.low), T(a.high)};
  const int64_t groups = (a.elements + per - 1) / per;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  bool finite = true;
  for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
       group += step) {
    const int64_t begin = group * per;
    const int count = F::kAligned ? per : int(min(int64_t(per), a.elements - begin));
    finite &= combine_group<F, Columns, Noise>(a, weights, word, draw, limits,
                                               sample * a.elements + begin, uint32_t(group), count,
                                               KeepNone{});
  }
  return finite;
}

template <typename F, int Columns, bool Noise>
__global__ void __launch_bounds__(kThreads, (resident<F, Columns, Noise>()))
    host_kernel(const __grid_constant__ HostCall<typename F::Number, Columns> call) {
  using T = typename F::Number;
  const CombineCall& a = call.rows;
  const HostWeights<T, Columns> weights = {call};
  const int64_t step = int64_t(gridDim.y) * blockDim.y;
  for (int64_t sample = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; sample < a.samples;
       sample += step) {
    const uint64_t id = !Noise ? 0 : a.ids ? uint64_t(a.ids[sample]) : uint64_t(sample);
    const DrawOfKeys draw = {call.keys, id};
    const bool finite = make_groups<F, Columns, Noise>(a, weights, a.word, draw, sample);
    if (a.status && !finite) report(a, sample);
  }
}

template <typename F, int Columns, bool Noise>
__global__ void __launch_bounds__(kThreads, (resident<F, Columns, Noise>()))
    combine_kernel(const __grid_constant__ CombineArgs a) {
  using T = typename F::Number;
  extern __shared__ __align__(16) unsigned char shared[];
  T* weights = reinterpret_cast<T*>(shared);
  if (!a.weight_table) {
    fill_weights<T, Columns>(a, 0, 1, weights);
    __syncthreads();
  }
  const int64_t step = int64_t(gridDim.y) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.y) * blockDim.y; first < a.samples; first += step) {
    const T* mine = a.weight_table ? block_weights<T, Columns>(a, first, weights) : weights;
    const int64_t sample = first + threadIdx.y;
    if (sample >= a.samples) continue;
    const Stream stream = Noise ? stream_of(a, sample) : Stream{};
    const SharedWeights<T, Columns> of_sample = {mine};
    const bool finite =
        make_groups<F, Columns, Noise>(a, of_sample, stream.word, DrawOfStream{stream}, sample);
    if (a.status && !finite) report(a, sample);
  }
}

template <typename F, int Columns>
cudaError_t launch_shared(const CombineArgs& a, cudaStream_t stream) {
  constexpr int per = F::kElements;
  const int64_t copy = a.rows * Slots<Columns>::kStride * int64_t(sizeof(typename F::Number));
  const int64_t most = a.weight_table ? kSharedBytes / copy : kThreads;
  const Layout layout = layout_of(a.samples, (a.elements + per - 1) / per, most);
  const int64_t copies = a.weight_table ? layout.block.y : 1;
  // A kernel without noise needs a third fewer registers.
  const auto kernel =
      a.noises > 0 ? combine_kernel<F, Columns, true> : combine_kernel<F, Columns, false>;
  return launch(kernel, layout, size_t(copies * copy), stream, a);
}

template <typename F, int Columns>
cudaError_t launch_host(const CombineArgs& a, cudaStream_t stream) {
  using T = typename F::Number;
  using S = Slots<Columns>;
  constexpr int per = F::kElements;
  HostCall<T, Columns> call;
  call.rows = a;
  const int width = a.inputs + (a.clamp ? 1 : 0);
  for (int r = 0; r < a.rows; ++r) {
    // A padded column is -0 * 0 = -0. Adding -0 changes no number, not even the sign of a zero.
    std::fill_n(call.weight[r], S::kStride, T(-0.0));
    for (int k = 0; k < width; ++k)
      call.weight[r][k < a.inputs ? k : S::kClamped] = T(a.weight[r * width + k]);
    for (int m = 0; m < a.noises; ++m) call.weight[r][S::kNoise + m] = T(a.noise[r * a.noises + m]);
  }
  call.keys = round_keys(a.seed);
  const Layout layout = layout_of(a.samples, (a.elements + per - 1) / per);
  const auto kernel = a.noises > 0 ? host_kernel<F, Columns, true> : host_kernel<F, Columns, false>;
  return launch(kernel, layout, 0, stream, call);
}

}  // namespace
}  // namespace diffast::cuda
