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
    __syncthreads();  // other threads may still read the previous samples' weights
    fill_weights<T, Columns>(a, first, int(min(int64_t(blockDim.y), a.samples - first)), weights);
    __syncthreads();
    const T* mine = weights + threadIdx.y * a.rows * Slots<Columns>::kStride;
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
        combine_group<T, Columns, Aligned, false>(a, mine, Stream{}, Limits<T>{},
                                                  sample * a.elements + begin, uint32_t(group),
                                                  count, keep);
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
    }
  }
}

// A warp takes one sum of one sample.
__global__ void __launch_bounds__(kThreads) sums_kernel(const __grid_constant__ GramArgs g) {
  const int64_t chunks = gram_chunks(g.rows);
  const int count_sums = gram_sums(g);
  const int64_t total = g.rows.samples * count_sums;
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < total; first += step) {
    const int64_t at = first + threadIdx.y;
    const double* partial = g.partials + at / count_sums * chunks * count_sums + at % count_sums;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; at < total && i < chunks; i += kWarp)
      sum = sum + partial[i * count_sums];
    sum = warp_sum(sum);
    if (threadIdx.x == 0 && at < total) g.sums[at] = sum;
  }
}

// Threads along x go through a sample in whole warps. If samples are short, y counts samples.
inline Layout gram_layout(const CombineArgs& a, int64_t samples_a_block) {
  const int64_t x = std::min<int64_t>(gram_chunks(a) * kWarp, kThreads);
  const int64_t y = std::clamp<int64_t>(kThreads / x, 1, std::min(a.samples, samples_a_block));
  const int64_t grid_y = std::min((a.samples + y - 1) / y, kBlocks);
  const int64_t blocks = (gram_chunks(a) * kWarp + x - 1) / x;
  const int64_t grid_x = std::min(blocks, std::max<int64_t>(1, kBlocks / grid_y));
  return {dim3(unsigned(grid_x), unsigned(grid_y)), dim3(unsigned(x), unsigned(y))};
}

template <typename T, int Columns, bool Aligned>
cudaError_t launch_gram_columns(const GramArgs& g, cudaStream_t stream) {
  const int64_t copy = g.rows.rows * Slots<Columns>::kStride * int64_t(sizeof(T));
  const Layout layout = gram_layout(g.rows, kSharedBytes / copy);
  return launch(gram_kernel<T, Columns, Aligned>, layout, size_t(layout.block.y * copy), stream, g);
}

template <typename T, bool Aligned>
cudaError_t launch_gram_rows(const GramArgs& g, cudaStream_t stream) {
  const int inputs = g.rows.inputs;
  if (inputs <= 2) return launch_gram_columns<T, 2, Aligned>(g, stream);
  if (inputs <= 4) return launch_gram_columns<T, 4, Aligned>(g, stream);
  return launch_gram_columns<T, kMaxGramInputs, Aligned>(g, stream);
}

cudaError_t launch_sums(const GramArgs& g, cudaStream_t stream) {
  constexpr int sums = kThreads / kWarp;
  const int64_t total = g.rows.samples * gram_sums(g);
  const int64_t blocks = std::min((total + sums - 1) / sums, kBlocks);
  const Layout layout = {dim3(unsigned(blocks)), dim3(kWarp, sums)};
  return launch(sums_kernel, layout, 0, stream, g);
}

}  // namespace
}  // namespace diffast::cuda

namespace diffast {

cudaError_t launch_gram(const GramArgs& g, cudaStream_t stream) {
  const CombineArgs& a = g.rows;
  if (a.samples == 0) return cudaSuccess;
  if (a.elements == 0) return cuda::launch_sums(g, stream);
  const bool aligned = cuda::all_aligned(a);
  cudaError_t error;
  if (a.wide)
    error = aligned ? cuda::launch_gram_rows<double, true>(g, stream)
                    : cuda::launch_gram_rows<double, false>(g, stream);
  else
    error = aligned ? cuda::launch_gram_rows<float, true>(g, stream)
                    : cuda::launch_gram_rows<float, false>(g, stream);
  if (error != cudaSuccess || gram_chunks(a) == 1) return error;
  return cuda::launch_sums(g, stream);
}

}  // namespace diffast
