// `gram` on CUDA: rows stay in registers, and the products of their pairs are added up in double. A
// warp adds up a chunk of 128 elements; a second kernel adds up a sample's chunks.

#include "../../cuda/launch.h"
#include "../../cuda/rows.cuh"
#include "../../cuda/warps.cuh"
#include "args.h"

namespace diffast::cuda {
namespace {

static_assert(kGramChunk == kWarp * kPerThread);

// All rows of four elements. The row's number is not known to the compiler: selecting instead of
// indexing keeps the rows in registers.
template <typename T>
struct KeepRows {
  T row[kMaxGramRows][kPerThread];

  __device__ __forceinline__ void operator()(int r, const T (&y)[kPerThread]) {
#pragma unroll
    for (int j = 0; j < kMaxGramRows; ++j)
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) row[j][i] = j == r ? y[i] : row[j][i];
  }
};

template <typename T, int Columns, bool Aligned>
__global__ void __launch_bounds__(kThreads) gram_kernel(const __grid_constant__ GramArgs g) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* weights = reinterpret_cast<T*>(shared);
  const CombineArgs& a = g.rows;
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  const int64_t chunks = gram_chunks(a);
  const int warps = int(blockDim.x) / kWarp;
  const int count_sums = gram_sums(g);
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.y) * blockDim.y; first < a.samples; first += sample_step) {
    const T* mine = block_weights<T, Columns>(a, first, weights);
    const int64_t sample = first + threadIdx.y;
    // All threads of a block run this loop: those without a sample or elements take part in the
    // sums.
    for (int64_t block = blockIdx.x; block * warps < chunks; block += gridDim.x) {
      const int64_t group = block * int64_t(blockDim.x) + threadIdx.x;
      KeepRows<T> keep = {};
      int count = 0;
      if (sample < a.samples && group < groups) {
        const int64_t begin = group * kPerThread;
        count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
        combine_group<AnyTypes<T, Aligned>, Columns, false>(
            a, SharedWeights<T, Columns>{mine}, 0, DrawNone{}, Limits<T>{},
            sample * a.elements + begin, uint32_t(group), count, keep);
      }
      const int64_t chunk = block * warps + threadIdx.x / kWarp;
      const bool writes = sample < a.samples && chunk < chunks && threadIdx.x % kWarp == 0;
      double* to = chunks > 1 ? g.partials + (sample * chunks + chunk) * count_sums
                              : g.sums + sample * count_sums;
#pragma unroll
      for (int i = 0; i < kMaxGramRows; ++i) {
#pragma unroll
        for (int j = i; j < kMaxGramRows; ++j) {
          if (j >= a.rows) break;
          double sum = 0;
#pragma unroll
          for (int lane = 0; lane < kPerThread; ++lane)
            if (lane < count) sum = sum + double(keep.row[i][lane]) * double(keep.row[j][lane]);
          sum = warp_sum(sum);
          if (writes) *to++ = sum;
        }
      }
      if (!g.totals) continue;
#pragma unroll
      for (int i = 0; i < kMaxGramRows; ++i) {
        if (i >= a.rows) break;
        double sum = 0;
#pragma unroll
        for (int lane = 0; lane < kPerThread; ++lane)
          if (lane < count) sum = sum + double(keep.row[i][lane]);
        sum = warp_sum(sum);
        if (sample < a.samples && chunk < chunks && threadIdx.x % kWarp == 0) {
          const int64_t at = chunks > 1 ? sample * chunks + chunk : sample;
          (chunks > 1 ? g.partials : g.sums)[at * count_sums + count_sums - a.rows + i] = sum;
        }
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) sums_kernel(const __grid_constant__ GramArgs g) {
  const int64_t chunks = gram_chunks(g.rows);
  const int count_sums = gram_sums(g);
  each_sum(g.sums, g.rows.samples * count_sums, [&](int64_t at) -> Partials {
    const int64_t first = at / count_sums * chunks * count_sums + at % count_sums;
    return {g.partials + first, chunks, count_sums};
  });
}

template <typename T, int Columns, bool Aligned>
cudaError_t launch_gram_columns(const GramArgs& g, cudaStream_t stream) {
  const int64_t copy = g.rows.rows * Slots<Columns>::kStride * int64_t(sizeof(T));
  // Threads along x go through a sample in whole warps.
  const int64_t threads = gram_chunks(g.rows) * kWarp, x = std::min<int64_t>(threads, kThreads);
  const Layout layout = layout_of(g.rows.samples, x, (threads + x - 1) / x, kSharedBytes / copy);
  return launch(gram_kernel<T, Columns, Aligned>, layout, size_t(layout.block.y * copy), stream, g);
}

template <typename T, bool Aligned>
cudaError_t launch_gram_inputs(const GramArgs& g, cudaStream_t stream) {
  const int inputs = g.rows.inputs;
  if (inputs <= 2) return launch_gram_columns<T, 2, Aligned>(g, stream);
  if (inputs <= 4) return launch_gram_columns<T, 4, Aligned>(g, stream);
  return launch_gram_columns<T, kMaxGramInputs, Aligned>(g, stream);
}

cudaError_t launch_sums(const GramArgs& g, cudaStream_t stream) {
  return launch(sums_kernel, sums_layout(g.rows.samples * gram_sums(g)), 0, stream, g);
}

}  // namespace

cudaError_t launch_gram(const GramArgs& g, cudaStream_t stream) {
  const CombineArgs& a = g.rows;
  if (a.samples == 0) return cudaSuccess;
  if (a.elements == 0) return launch_sums(g, stream);
  const cudaError_t error = launch_rows(
      a, [&]<typename T, bool Aligned>() { return launch_gram_inputs<T, Aligned>(g, stream); });
  if (error != cudaSuccess || gram_chunks(a) == 1) return error;
  return launch_sums(g, stream);
}

}  // namespace diffast::cuda
