// `normal` on CUDA: scale * N(0, 1) into a tensor.

#include "../../core/normal.h"
#include "../../cuda/elements.cuh"
#include "../../cuda/launch.h"

namespace diffast::cuda {
namespace {

struct NormalCall {
  NormalArgs args;
  RoundKeys keys;
};

template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads) normal_kernel(const __grid_constant__ NormalCall call) {
  const NormalArgs& a = call.args;
  const T scale = T(a.scale);
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  const int64_t group_step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t sample = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; sample < a.samples;
       sample += sample_step) {
    const uint64_t id = uint64_t(a.ids[sample]);
    for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
         group += group_step) {
      const int64_t begin = group * kPerThread;
      const int count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
      const Normals4 normals = normals_of_block(uint32_t(group), a.word, id, call.keys);
      T value[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) value[i] = scale * T(normals.value[i]);
      store4<T, Aligned>(a.y, a.y_type, sample * a.elements + begin, count, value);
    }
  }
}

}  // namespace

cudaError_t launch_normal(const NormalArgs& a, cudaStream_t stream) {
  if (a.samples * a.elements == 0) return cudaSuccess;
  const Layout layout = layout_of(a.samples, (a.elements + kPerThread - 1) / kPerThread);
  const bool aligned = a.elements % kPerThread == 0 && is_aligned(a.y, a.y_type);
  const NormalCall call = {a, round_keys(a.seed)};
  if (a.y_type == DType::kFloat64)
    return launch(aligned ? normal_kernel<double, true> : normal_kernel<double, false>, layout, 0,
                  stream, call);
  return launch(aligned ? normal_kernel<float, true> : normal_kernel<float, false>, layout, 0,
                stream, call);
}

}  // namespace diffast::cuda
