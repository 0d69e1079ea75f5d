// `combine_error` on CUDA. Rows are made as in `combine`; rows that are not stored stay in
// registers. A block adds up a chunk of 1,024 elements of one sample, or several samples with fewer
// elements, in an order that does not depend on the launch. A second kernel adds up a sample's
// chunks.

#include "../../cuda/launch.h"
#include "../../cuda/rows.cuh"
#include "norm.h"

namespace diffast::cuda {
namespace {

constexpr int kChunkGroups = int(kErrorChunk) / kPerThread;
static_assert(kChunkGroups <= kThreads);
// A block's numbers are added up in two turns: thread x adds elements x, x + 16, x + 32, ...; then
// thread 0 adds the 16 partial sums.
constexpr int kAdders = 16;
constexpr int64_t kSumBytes = int64_t(2 * kThreads * sizeof(double));

struct Norms {
  double error, measured;
};

__device__ __forceinline__ double fold(ErrorNorm norm, double total, double value) {
  return norm == ErrorNorm::kLinf ? larger(value, total) : total + value;
}

// Keeps, of the rows of four elements, what the norms are made of.
template <typename T>
struct KeepError {
  const ErrorArgs& e;
  int count;
  T error[kPerThread] = {}, size[kPerThread] = {};
  double measured = 0;

  __device__ __forceinline__ void operator()(int r, const T (&y)[kPerThread]) {
    if (r < e.error) return;
    const bool last = e.measure && r == e.rows.rows - 1;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (r == e.error)
        error[i] = y[i];
      else if (!last)
        size[i] = larger(magnitude(y[i]), size[i]);
      else if (i < count)
        measured = measured + double(y[i]) * double(y[i]);
    }
  }

  __device__ __forceinline__ Norms norms(T atol, T rtol) const {
    Norms sum = {0, measured};
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const T scale = size[i] * rtol;
      T delta = atol;
      if (e.form == ErrorForm::kMax) delta = larger(atol, scale);
      if (e.form == ErrorForm::kSum) delta = atol + scale;
      const double q = double(magnitude(scaled_error(error[i], delta)));
      if (i < count) sum.error = fold(e.norm, sum.error, e.norm == ErrorNorm::kLinf ? q : q * q);
    }
    return sum;
  }
};

__device__ __forceinline__ void write_norms(const ErrorArgs& e, int64_t sample, Norms sum) {
  const int64_t elements = e.rows.elements;
  if (elements > 0 && e.norm == ErrorNorm::kL2) sum.error = root_mean(sum.error, elements);
  e.norms[2 * sample] = sum.error;
  e.norms[2 * sample + 1] = elements > 0 ? root_mean(sum.measured, elements) : 0.0;
}

// Sums over the threads with one y. Every thread of the block calls it; the thread with x = 0 gets
// the sums.
__device__ __forceinline__ Norms add_up(const ErrorArgs& e, Norms mine, double* sums) {
  double* error = sums + threadIdx.y * blockDim.x;
  double* measured = error + kThreads;
  const int x = int(threadIdx.x);
  const int threads = int(blockDim.x);
  __syncthreads();  // other threads may still read the previous chunk's sums
  error[x] = mine.error;
  measured[x] = mine.measured;
  __syncthreads();
  Norms total = {0, 0};
  if (x < kAdders) {
#pragma unroll 1
    for (int i = x; i < threads; i += kAdders) {
      total.error = fold(e.norm, total.error, error[i]);
      total.measured = total.measured + measured[i];
    }
    error[x] = total.error;
    measured[x] = total.measured;
  }
  __syncthreads();
  if (x > 0) return total;
  total = {0, 0};
#pragma unroll 1
  for (int i = 0; i < kAdders && i < threads; ++i) {
    total.error = fold(e.norm, total.error, error[i]);
    total.measured = total.measured + measured[i];
  }
  return total;
}

// As kResident of `combine`, with registers for the sums.
template <typename T, int Columns, bool Noise>
constexpr int kErrorResident = sizeof(T) == sizeof(double) || (Columns > 8 && Noise) ? 1
                               : Columns <= 4                                        ? 3
                                                                                     : 2;

template <typename T, int Columns, bool Aligned, bool Noise>
__global__ void __launch_bounds__(kThreads, (kErrorResident<T, Columns, Noise>))
    error_kernel(const __grid_constant__ ErrorArgs e) {
  extern __shared__ __align__(16) unsigned char shared[];
  double* sums = reinterpret_cast<double*>(shared);
  T* weights = reinterpret_cast<T*>(shared + kSumBytes);
  const CombineArgs& a = e.rows;
  const Limits<T> limits = {T(a.low), T(a.high)};
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  const int64_t chunks = error_chunks(a);
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.y) * blockDim.y; first < a.samples; first += sample_step) {
    const T* mine = block_weights<T, Columns>(a, first, weights);
    const int64_t sample = first + threadIdx.y;
    const bool active = sample < a.samples;  // inactive threads take part in the barriers only
    const Stream stream = Noise && active ? stream_of(a, sample) : Stream{};
    const T atol = active ? T(e.tolerance[2 * sample]) : T(0);
    const T rtol = active ? T(e.tolerance[2 * sample + 1]) : T(0);
    bool finite = true;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
      const int64_t group = chunk * kChunkGroups + threadIdx.x;
      Norms sum = {0, 0};
      if (active && group < groups) {
        const int64_t begin = group * kPerThread;
        const int count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
        KeepError<T> keep{e, count};
        finite &= combine_group<T, Columns, Aligned, Noise>(
            a, mine, stream, limits, sample * a.elements + begin, uint32_t(group), count, keep);
        sum = keep.norms(atol, rtol);
      }
      sum = add_up(e, sum, sums);
      if (threadIdx.x > 0 || !active) continue;
      if (chunks == 1) {
        write_norms(e, sample, sum);
      } else {
        double* partial = e.partials + 2 * (sample * chunks + chunk);
        partial[0] = sum.error;
        partial[1] = sum.measured;
      }
    }
    if (a.status && !finite) report(a, sample);
  }
}

// The 32 threads with one y take one sample: thread x adds chunks x, x + 32, x + 64, ...
__global__ void __launch_bounds__(kThreads) norms_kernel(const __grid_constant__ ErrorArgs e) {
  extern __shared__ __align__(16) unsigned char shared[];
  double* sums = reinterpret_cast<double*>(shared);
  const int64_t chunks = error_chunks(e.rows);
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < e.rows.samples; first += step) {
    const int64_t sample = first + threadIdx.y;
    const bool active = sample < e.rows.samples;
    const double* partial = e.partials + 2 * sample * chunks;
    Norms sum = {0, 0};
#pragma unroll 4
    for (int64_t i = threadIdx.x; active && i < chunks; i += blockDim.x) {
      sum.error = fold(e.norm, sum.error, partial[2 * i]);
      sum.measured = sum.measured + partial[2 * i + 1];
    }
    sum = add_up(e, sum, sums);
    if (threadIdx.x == 0 && active) write_norms(e, sample, sum);
  }
}

template <typename T, int Columns, bool Aligned>
cudaError_t launch_error_columns(const ErrorArgs& e, cudaStream_t stream) {
  const int64_t copy = e.rows.rows * Slots<Columns>::kStride * int64_t(sizeof(T));
  const CombineArgs& a = e.rows;
  // Threads along x go through a chunk.
  const int64_t x = std::min<int64_t>((a.elements + kPerThread - 1) / kPerThread, kChunkGroups);
  const Layout layout = layout_of(a.samples, x, error_chunks(a), kSharedBytes / copy);
  const auto kernel = e.rows.noises > 0 ? error_kernel<T, Columns, Aligned, true>
                                        : error_kernel<T, Columns, Aligned, false>;
  return launch(kernel, layout, size_t(kSumBytes + layout.block.y * copy), stream, e);
}

// As for `combine`, with fewer instances for the common kinds as well.
template <typename T, bool Aligned>
cudaError_t launch_error_inputs(const ErrorArgs& e, cudaStream_t stream) {
  const int inputs = e.rows.inputs;
  if (inputs <= 2) return launch_error_columns<T, 2, Aligned>(e, stream);
  if constexpr (Aligned && sizeof(T) == sizeof(float)) {
    if (inputs == 3) return launch_error_columns<T, 3, Aligned>(e, stream);
    if (inputs == 5) return launch_error_columns<T, 5, Aligned>(e, stream);
    if (inputs == 6) return launch_error_columns<T, 6, Aligned>(e, stream);
  }
  if (inputs <= 4) return launch_error_columns<T, 4, Aligned>(e, stream);
  if (inputs <= 8) return launch_error_columns<T, 8, Aligned>(e, stream);
  return launch_error_columns<T, kMaxInputs, Aligned>(e, stream);
}

cudaError_t launch_norms(const ErrorArgs& e, cudaStream_t stream) {
  return launch(norms_kernel, sums_layout(e.rows.samples), size_t(kSumBytes), stream, e);
}

}  // namespace

cudaError_t launch_combine_error(const ErrorArgs& e, cudaStream_t stream) {
  const CombineArgs& a = e.rows;
  if (a.samples == 0) return cudaSuccess;
  if (a.elements == 0) return launch_norms(e, stream);
  const cudaError_t error = launch_rows(
      a, [&]<typename T, bool Aligned>() { return launch_error_inputs<T, Aligned>(e, stream); });
  if (error != cudaSuccess || error_chunks(a) == 1) return error;
  return launch_norms(e, stream);
}

}  // namespace diffast::cuda
