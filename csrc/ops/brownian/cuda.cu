// `brownian` on CUDA. A thread takes four neighbouring elements of one sample and goes down the
// tree. The values at both ends of the current interval stay in registers.

#include "../../cuda/elements.cuh"
#include "../../cuda/launch.h"
#include "tree.h"

namespace diffast::cuda {
namespace {

// A call and the constants of all levels, which the host has rounded to T.
template <typename T>
struct BrownianCall {
  BrownianArgs args;
  T keep[kMaxDepth + 1];
  T fresh[kMaxDepth + 1];
};

// V at a node, for the elements of one Philox block.
template <typename T>
__device__ __forceinline__ void path_value(const BrownianCall<T>& call, uint64_t seed, uint64_t id,
                                           uint32_t block, int64_t node, T (&value)[kPerThread]) {
  const int depth = call.args.depth;
  node = node_within(node, depth);
  const int count = steps_to(node, depth);
  T left[kPerThread] = {}, right[kPerThread] = {};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) value[i] = T(0);
#pragma unroll 1
  for (int step = 0; step < count; ++step) {
    const bool up = is_lower_end(node, depth, step);
    const T keep = call.keep[step == 1 ? 0 : step], fresh = call.fresh[step == 1 ? 0 : step];
    const Normals4 z = normals_of_block(block, word_of_step(node, depth, step), id, opaque(seed));
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const T known = step == 1 ? left[i] : left[i] + right[i];
      const T made = step == 0 ? T(z.value[i]) : known * keep + T(z.value[i]) * fresh;
      value[i] = made;
      if (up || step == 0) left[i] = made;
      if (!up || step == 0) right[i] = made;
    }
  }
}

// Group `block` of one sample, which begins at element `offset` of the batch.
template <typename T, bool Aligned>
__device__ __forceinline__ void brownian_group(const BrownianCall<T>& call, int64_t sample,
                                               int64_t offset, uint32_t block, int count) {
  constexpr DType type = kNative<T>;
  const BrownianArgs& a = call.args;
  const uint64_t seed = uint64_t(a.streams[3 * sample]);
  const uint64_t id = uint64_t(a.streams[3 * sample + 1]);
  const int64_t start = a.nodes[2 * sample];
  const bool known = a.last && start >= 0;
  T from[kPerThread] = {}, to[kPerThread] = {};
  // A loop keeps the compiler from making two copies of the descent.
#pragma unroll 1
  for (int end = known ? 1 : 0; end < 2; ++end) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) from[i] = to[i];
    path_value(call, seed, id, block, a.nodes[2 * sample + end], to);
  }
  if (known) {
    const Raw<T> raw = load4<T, Aligned>(a.last, type, offset, count);
    widen4(raw, type, from);
  }
  const T weight = T(a.weights[2 * sample]), of_start = T(a.weights[2 * sample + 1]);
  T increment[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) increment[i] = to[i] * weight + from[i] * of_start;
  store4<T, Aligned>(a.increment, type, offset, count, increment);
  if (a.value) store4<T, Aligned>(a.value, type, offset, count, to);
}

// Blocks that a multiprocessor must have registers for. For one more the compiler spills.
template <typename T>
constexpr int kBrownianResident = sizeof(T) == sizeof(double) ? 2 : 3;

template <typename T, bool Aligned>
__global__ void __launch_bounds__(kThreads, kBrownianResident<T>)
    brownian_kernel(const __grid_constant__ BrownianCall<T> call) {
  const BrownianArgs& a = call.args;
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  const int64_t group_step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t sample = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; sample < a.samples;
       sample += sample_step) {
    for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
         group += group_step) {
      const int64_t begin = group * kPerThread;
      const int count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
      brownian_group<T, Aligned>(call, sample, sample * a.elements + begin, uint32_t(group), count);
    }
  }
}

template <typename T>
cudaError_t launch_typed(const BrownianArgs& a, cudaStream_t stream) {
  BrownianCall<T> call;
  call.args = a;
  for (int level = 0; level <= kMaxDepth; ++level) {
    call.keep[level] = T(kBrownianLevels[level].keep);
    call.fresh[level] = T(kBrownianLevels[level].fresh);
  }
  bool aligned = a.elements % kPerThread == 0;
  for (const void* base : std::initializer_list<const void*>{a.last, a.increment, a.value})
    aligned = aligned && is_aligned(base, kNative<T>);
  const Layout layout = layout_of(a.samples, (a.elements + kPerThread - 1) / kPerThread);
  return launch(aligned ? brownian_kernel<T, true> : brownian_kernel<T, false>, layout, 0, stream,
                call);
}

}  // namespace

cudaError_t launch_brownian(const BrownianArgs& args, cudaStream_t stream) {
  if (args.samples * args.elements == 0) return cudaSuccess;
  return args.wide ? launch_typed<double>(args, stream) : launch_typed<float>(args, stream);
}

}  // namespace diffast::cuda
