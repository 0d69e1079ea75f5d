// `sweep` on CUDA. A block takes some elements of one job. The job's state stays in registers, and
// what the next stages read is loaded ahead. Weights are put into shared memory, 32 stages at a
// time. Each warp writes its sums of squares; a second kernel adds them up, in an order that
// depends on the number of elements alone.

#include "../../cuda/launch.h"
#include "stages.cuh"

namespace diffast::cuda {
namespace {

// Does the stages of a job that have outputs, or its tail.
template <bool Tail, typename T, typename K, bool Aligned>
__device__ __forceinline__ void walk_stages(Walk<T, K, Aligned>& walk, T* weights) {
  const int low = Tail ? walk.job.real : 0;
  const int high = walk.job.real + (Tail ? walk.job.tail : 0);
#pragma unroll 1
  for (int batch = low; batch < high; batch += kBatch) {
    const int count = min(kBatch, high - batch);
    __syncthreads();  // other threads may still read the previous stages' weights
    fill_stages<T, K>(walk.a, int64_t(walk.job.first) + batch, count, walk.rows + batch, Tail,
                      weights);
    __syncthreads();
    if constexpr (Tail) {
#pragma unroll 1
      for (int k = 0; k < count; ++k) walk.take_tail(weights + k * K::kStage, batch + k);
    } else {
#pragma unroll 1
      for (int k = 0; k < count; k += K::kAhead) {
#pragma unroll
        for (int slot = 0; slot < K::kAhead; ++slot)
          if (k + slot < count) walk.take(weights + (k + slot) * K::kStage, slot, batch + k + slot);
      }
    }
  }
}

// How many blocks a multiprocessor must have registers for. Loads made ahead hide the latency, so
// few threads suffice. Without this number the compiler aims at more blocks, and spills.
template <typename T, typename K>
constexpr int kSweepResident = (sizeof(T) == sizeof(double) ? 3 : 4) - (K::kEntries > 1 ? 1 : 0);

template <typename T, typename K, bool Aligned>
__global__ void __launch_bounds__(kSweepThreads, (kSweepResident<T, K>))
    sweep_kernel(const __grid_constant__ SweepArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* weights = reinterpret_cast<T*>(shared);
  for (int64_t j = blockIdx.y; j < a.job_count; j += gridDim.y) {
    Walk<T, K, Aligned> walk(a, j, blockIdx.x);
    walk.request_first();
    walk.start();
    walk_stages<false>(walk, weights);
    walk_stages<true>(walk, weights);
    walk.leave();
  }
}

// Adds up the partial sums of every stage, or writes 0 where there are none.
__global__ void __launch_bounds__(kThreads) norms_kernel(const __grid_constant__ SweepArgs a) {
  const int64_t sums = a.rows > 0 ? sweep_sums(a.elements) : 0;
  each_sum(a.norms, a.job_count * (a.length + 1), [&](int64_t at) -> Partials {
    const SweepJob& job = a.jobs[at / (a.length + 1)];
    const int64_t k = at % (a.length + 1);
    const bool is_end = k == job.real && job.tail == 0 && job.state_out >= 0;
    return {a.partials + at * sums, k < job.real || is_end ? sums : 0, 1};
  });
}

template <typename T>
inline bool walks_aligned(const SweepArgs& a) {
  bool aligned = a.elements % kPerThread == 0;
  for (const void* base : std::initializer_list<const void*>{a.x, a.points, a.states})
    aligned = aligned && is_aligned(base, kNative<T>);
  for (int o = 0; o < a.outputs; ++o)
    aligned = aligned && is_aligned(a.output[o], a.output_type[o]);
  return aligned;
}

template <typename T, typename K>
cudaError_t launch_kind(const SweepArgs& a, cudaStream_t stream) {
  const auto kernel = walks_aligned<T>(a) ? sweep_kernel<T, K, true> : sweep_kernel<T, K, false>;
  const Layout layout = {
      dim3(unsigned(sweep_blocks(a.elements)), unsigned(std::min(a.job_count, kBlocks))),
      dim3(unsigned(sweep_threads(a.elements)))};
  return launch_exactly(kernel, layout, size_t(kBatch) * K::kStage * sizeof(T), stream, a);
}

// The common kinds have kernels of their own; the last kernel serves all others.
template <typename T>
cudaError_t launch_sweep_typed(const SweepArgs& a, cudaStream_t stream) {
  const bool few = a.outputs <= 1 && a.entries <= 1 && !a.parts;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (few && a.entries == 0)
      return a.noises > 0 ? launch_kind<T, Kind<1, 0, false, true, 2>>(a, stream)
                          : launch_kind<T, Kind<1, 0, false, false, 4>>(a, stream);
    if (few)
      return a.noises > 0 ? launch_kind<T, Kind<1, 1, false, true, 2>>(a, stream)
                          : launch_kind<T, Kind<1, 1, false, false, 4>>(a, stream);
    return launch_kind<T, Kind<kMaxOutputs, kMaxEntries, true, true, 2>>(a, stream);
  } else {
    if (few) return launch_kind<T, Kind<1, 1, false, true, 2>>(a, stream);
    return launch_kind<T, Kind<kMaxOutputs, kMaxEntries, true, true, 1>>(a, stream);
  }
}

}  // namespace

cudaError_t launch_sweep(const SweepArgs& a, cudaStream_t stream) {
  if (a.job_count == 0) return cudaSuccess;
  if (a.rows * a.elements > 0) {
    const cudaError_t error =
        a.wide ? launch_sweep_typed<double>(a, stream) : launch_sweep_typed<float>(a, stream);
    if (error != cudaSuccess) return error;
  }
  if (!a.norms) return cudaSuccess;
  return launch(norms_kernel, sums_layout(a.job_count * (a.length + 1)), 0, stream, a);
}

}  // namespace diffast::cuda
