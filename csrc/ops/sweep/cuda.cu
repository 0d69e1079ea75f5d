// `sweep` on CUDA. A block takes some elements of one job, or of one chunk of its stages. The job's
// state stays in registers, and what the next stages read is loaded ahead. Weights are put into
// shared memory, 32 stages at a time. Each warp writes its sums of squares; a second kernel adds
// them up, in an order that depends on the number of elements alone.

#include "../../cuda/launch.h"
#include "stages.cuh"

namespace diffast::cuda {
namespace {

// Does stages [low, high); calls `after(weights)` after each.
template <bool OnlyPoint, typename T, typename K, bool Aligned, typename After>
__device__ __forceinline__ void walk_real(Walk<T, K, Aligned>& walk, int low, int high, T* weights,
                                          After&& after) {
#pragma unroll 1
  for (int batch = low; batch < high; batch += kBatch) {
    const int count = min(kBatch, high - batch);
    __syncthreads();  // other threads may still read the previous stages' weights
    fill_stages<T, K>(walk.a, int64_t(walk.job.first) + batch, count, walk.rows + batch, false,
                      weights);
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < count; k += K::kAhead) {
#pragma unroll
      for (int slot = 0; slot < K::kAhead; ++slot) {
        if (k + slot < count) {
          const T* mine = weights + (k + slot) * K::kStage;
          walk.template take<OnlyPoint>(mine, slot, batch + k + slot, high);
          after(mine);
        }
      }
    }
  }
}

template <typename T, typename K, bool Aligned>
__device__ __forceinline__ void walk_tail(Walk<T, K, Aligned>& walk, T* weights) {
  const int low = walk.job.real, high = walk.job.real + walk.job.tail;
#pragma unroll 1
  for (int batch = low; batch < high; batch += kBatch) {
    const int count = min(kBatch, high - batch);
    __syncthreads();
    fill_stages<T, K>(walk.a, int64_t(walk.job.first) + batch, count, walk.rows + batch, true,
                      weights);
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < count; ++k) walk.take_tail(weights + k * K::kStage, batch + k);
  }
}

// Sets where a chunk starts, from where the chunks before it began and ended. `note` is the index
// of the job's first chunk. Neither x nor a state is read: another chunk may have written there.
template <typename T, typename K, bool Aligned>
__device__ __forceinline__ void start_chunk(Walk<T, K, Aligned>& walk, int64_t note, int chunk) {
  const SweepArgs& a = walk.a;
  walk.load(a.ends, 2 * note, walk.p);
#pragma unroll 1
  for (int n = 0; n < chunk; ++n, ++note) {
    const T gain = static_cast<const T*>(a.gains)[note];
    T began[kPerThread], ended[kPerThread];
    walk.load(a.ends, 2 * note, began);
    walk.load(a.ends, 2 * note + 1, ended);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      walk.p[i] = with_change(ended[i], gain, walk.p[i] - began[i]);
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) walk.anchor[i] = walk.p[i];
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
  const unsigned blocks = unsigned(sweep_blocks(a.elements));
  const int chunks = int(sweep_chunks(a));
  const int chunk = int(blockIdx.x / blocks);
  for (int64_t j = blockIdx.y; j < a.job_count; j += gridDim.y) {
    Walk<T, K, Aligned> walk(a, j, blockIdx.x % blocks);
    const int real = walk.job.real;
    int low = 0, high = real;
    if (chunks > 1) {
      low = int(min(chunk * a.chunk, int64_t(real)));
      high = int(min(low + a.chunk, int64_t(real)));
      if (low == real && chunk > 0) continue;  // the job has fewer chunks
    }
    walk.request_first(low, high);
    walk.start();
    if (chunks > 1) start_chunk(walk, j * (chunks - 1), chunk);
    walk_real<false>(walk, low, high, weights, [](const T*) {});
    if (high < real) continue;
    walk_tail(walk, weights);
    walk.leave();
  }
}

// Runs the chunks that have a next one, each from its own row of x. Notes where a chunk began and
// ended, and by how much its end moves with its beginning.
template <typename T, typename K, bool Aligned>
__global__ void __launch_bounds__(kSweepThreads, (kSweepResident<T, K>))
    ends_kernel(const __grid_constant__ SweepArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* weights = reinterpret_cast<T*>(shared);
  const unsigned blocks = unsigned(sweep_blocks(a.elements));
  const int chunk = int(blockIdx.x / blocks);
  const int64_t noted = sweep_chunks(a) - 1;
  for (int64_t j = blockIdx.y; j < a.job_count; j += gridDim.y) {
    Walk<T, K, Aligned> walk(a, j, blockIdx.x % blocks);
    const int64_t low = chunk * a.chunk;
    // Of a first chunk without a next one, only the beginning is needed.
    const bool followed = low + a.chunk < walk.job.real;
    if (!followed && chunk > 0) continue;
    const int high = int(followed ? low + a.chunk : low);
    walk.request_first(int(low), high);
    if (chunk == 0) {
      walk.start();
    } else {
      walk.load(a.x, walk.rows[low], walk.p);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) walk.anchor[i] = walk.p[i];
    }
    const int64_t note = j * noted + chunk;
    walk.store(a.ends, 2 * note, walk.p);
    T gain = T(1);
    walk_real<true>(walk, int(low), high, weights, [&](const T* mine) {
      const T* point = mine + K::kPointRow * K::kStride;
      gain = gain * (a.slopes ? point[0] + point[K::kChange] : point[0]);
    });
    walk.store(a.ends, 2 * note + 1, walk.p);
    if (blockIdx.x % blocks == 0 && threadIdx.x == 0) static_cast<T*>(a.gains)[note] = gain;
  }
}

// A warp takes one norm: it adds up a stage's partial sums, or writes 0 where there are none.
__global__ void __launch_bounds__(kThreads) norms_kernel(const __grid_constant__ SweepArgs a) {
  const int64_t total = a.job_count * (a.length + 1);
  const int64_t sums = a.rows > 0 ? sweep_sums(a.elements) : 0;
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < total; first += step) {
    const int64_t at = first + threadIdx.y;
    double sum = 0;
    if (at < total && sums > 0) {
      const SweepJob& job = a.jobs[at / (a.length + 1)];
      const int64_t k = at % (a.length + 1);
      const bool is_end = k == job.real && job.tail == 0 && job.state_out >= 0;
      const int64_t count = k < job.real || is_end ? sums : 0;
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < count; i += kWarp) sum = sum + a.partials[at * sums + i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0 && at < total) a.norms[at] = sum;
  }
}

template <typename T>
inline bool walks_aligned(const SweepArgs& a) {
  constexpr DType type = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  bool aligned = a.elements % kPerThread == 0;
  for (const void* base : {a.x, static_cast<const void*>(a.points),
                           static_cast<const void*>(a.states), static_cast<const void*>(a.ends)})
    aligned = aligned && is_aligned(base, type);
  for (int o = 0; o < a.outputs; ++o)
    aligned = aligned && is_aligned(a.output[o], a.output_type[o]);
  return aligned;
}

template <typename T, typename K, typename Kernel>
cudaError_t launch_walks(Kernel kernel, int64_t chunks, const SweepArgs& a, cudaStream_t stream) {
  const Layout layout = {
      dim3(unsigned(sweep_blocks(a.elements) * chunks), unsigned(std::min(a.job_count, kBlocks))),
      dim3(unsigned(sweep_threads(a.elements)))};
  return launch(kernel, layout, size_t(kBatch) * K::kStage * sizeof(T), stream, a);
}

template <typename T, typename K>
cudaError_t launch_kind(const SweepArgs& a, cudaStream_t stream) {
  const auto kernel = walks_aligned<T>(a) ? sweep_kernel<T, K, true> : sweep_kernel<T, K, false>;
  return launch_walks<T, K>(kernel, sweep_chunks(a), a, stream);
}

template <typename T>
cudaError_t launch_ends(const SweepArgs& a, cudaStream_t stream) {
  using K = Kind<kMaxOutputs, 0, false, true, 2>;
  const auto kernel = walks_aligned<T>(a) ? ends_kernel<T, K, true> : ends_kernel<T, K, false>;
  return launch_walks<T, K>(kernel, sweep_chunks(a) - 1, a, stream);
}

// The common kinds have kernels of their own; the last kernel serves all others.
template <typename T>
cudaError_t launch_sweep_typed(const SweepArgs& a, cudaStream_t stream) {
  if (sweep_chunks(a) > 1) {
    const cudaError_t error = launch_ends<T>(a, stream);
    if (error != cudaSuccess) return error;
  }
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

cudaError_t launch_norms(const SweepArgs& a, cudaStream_t stream) {
  constexpr int norms = kThreads / kWarp;
  const int64_t total = a.job_count * (a.length + 1);
  const int64_t blocks = std::min((total + norms - 1) / norms, kBlocks);
  const Layout layout = {dim3(unsigned(blocks)), dim3(kWarp, norms)};
  return launch(norms_kernel, layout, 0, stream, a);
}

}  // namespace
}  // namespace diffast::cuda

namespace diffast {

cudaError_t launch_sweep(const SweepArgs& a, cudaStream_t stream) {
  if (a.job_count == 0) return cudaSuccess;
  if (a.rows * a.elements > 0) {
    const cudaError_t error = a.wide ? cuda::launch_sweep_typed<double>(a, stream)
                                     : cuda::launch_sweep_typed<float>(a, stream);
    if (error != cudaSuccess) return error;
  }
  return a.norms ? cuda::launch_norms(a, stream) : cudaSuccess;
}

}  // namespace diffast
