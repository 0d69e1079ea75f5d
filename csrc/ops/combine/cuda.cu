// `combine` on CUDA. A thread takes four neighbouring elements of all columns into registers, then
// makes one row after the other and writes it: an output may therefore be an input.

#include "../../cuda/launch.h"
#include "../../cuda/rows.cuh"

namespace diffast::cuda {
namespace {

// How many blocks a multiprocessor must have registers for. Without this number ptxas gives two of
// the instances fewer registers than they need, and they spill.
template <typename T, int Columns, bool Noise>
constexpr int kResident = sizeof(T) == sizeof(double) ? 1
                          : Columns <= 2 && !Noise    ? 5
                          : Columns <= 4 && !Noise    ? 4
                          : Columns <= 6              ? 3
                                                      : 2;

template <typename T, int Columns, bool Aligned, bool Noise>
__global__ void __launch_bounds__(kThreads, (kResident<T, Columns, Noise>))
    combine_kernel(const __grid_constant__ CombineArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* weights = reinterpret_cast<T*>(shared);
  const Limits<T> limits = {T(a.low), T(a.high)};
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  if (!a.weight_table) {
    fill_weights<T, Columns>(a, 0, 1, weights);
    __syncthreads();
  }
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.y) * blockDim.y; first < a.samples; first += sample_step) {
    const T* mine = a.weight_table ? block_weights<T, Columns>(a, first, weights) : weights;
    const int64_t sample = first + threadIdx.y;
    if (sample >= a.samples) continue;
    const Stream stream = Noise ? stream_of(a, sample) : Stream{};
    bool finite = true;
    const int64_t group_step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
         group += group_step) {
      const int64_t begin = group * kPerThread;
      const int count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
      finite &= combine_group<T, Columns, Aligned, Noise>(
          a, mine, stream, limits, sample * a.elements + begin, uint32_t(group), count, KeepNone{});
    }
    if (a.status && !finite) report(a, sample);
  }
}

template <typename T, int Columns, bool Aligned>
cudaError_t launch_columns(const CombineArgs& a, cudaStream_t stream) {
  const int64_t copy = a.rows * Slots<Columns>::kStride * int64_t(sizeof(T));
  const int64_t most = a.weight_table ? kSharedBytes / copy : kThreads;
  const Layout layout = layout_of(a.samples, (a.elements + kPerThread - 1) / kPerThread, most);
  const int64_t copies = a.weight_table ? layout.block.y : 1;
  // A kernel without noise needs a third fewer registers.
  const auto kernel = a.noises > 0 ? combine_kernel<T, Columns, Aligned, true>
                                   : combine_kernel<T, Columns, Aligned, false>;
  return launch(kernel, layout, size_t(copies * copy), stream, a);
}

// Float64 and unaligned tensors are rare and have fewer instances. A column that an instance has
// beyond the call's inputs costs no memory traffic.
template <typename T, bool Aligned>
cudaError_t launch_inputs(const CombineArgs& a, cudaStream_t stream) {
  constexpr int most = 8;
  if (a.inputs > most) return launch_columns<T, kMaxInputs, Aligned>(a, stream);
  if constexpr (Aligned && sizeof(T) == sizeof(float))
    return with_known<1, most>(a.inputs, [&]<int Columns>(Known<Columns>) {
      return launch_columns<T, Columns, Aligned>(a, stream);
    });
  if (a.inputs <= 2) return launch_columns<T, 2, Aligned>(a, stream);
  if (a.inputs <= 4) return launch_columns<T, 4, Aligned>(a, stream);
  return launch_columns<T, most, Aligned>(a, stream);
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.samples * args.elements == 0) return cudaSuccess;
  CombineArgs a = args;
  const bool per_sample = a.weight_table || a.noises > 0 || a.status;
  if (!per_sample) {
    a.elements *= a.samples;
    a.samples = 1;
  }
  return launch_rows(
      a, [&]<typename T, bool Aligned>() { return launch_inputs<T, Aligned>(a, stream); });
}

}  // namespace diffast::cuda
