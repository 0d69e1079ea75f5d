// The kernels of `combine_error` on CUDA. Rows are made as in `combine`; rows that are not stored
// stay in registers. A block adds up a chunk of 1,024 elements of one sample, or several samples
// with fewer elements. Four neighbouring elements are added up, then two such fours, two such
// eights, and so on to a chunk; chunks are added up in the same way (of more than 32, every 32nd
// comes first). So the order depends on the number of elements alone, whatever the launch and the
// elements a thread takes. The block that made few chunks adds them up; a second kernel adds up
// more.
#pragma once

#include <bit>

#include "../../cuda/rows.cuh"
#include "../../cuda/warps.cuh"
#include "args.h"
#include "norm.h"

namespace diffast::cuda {

// Serves calls whose tensors all have one half type: in cuda_half.cu.
cudaError_t launch_error_half(const ErrorArgs& e, cudaStream_t stream);

// Adds up the chunks of every sample, or writes zeros where there are no elements.
cudaError_t launch_error_norms(const ErrorArgs& e, cudaStream_t stream);

namespace {

// One block makes all chunks of a sample that has at most so many. It makes up to kFewChunks one
// after the other in less time than a second kernel takes to start, and more only where the samples
// occupy the GPU by themselves.
constexpr int64_t kMostChunks = 8, kFewChunks = 2, kManySamples = 128;

struct Norms {
  double error, measured;
};

struct AddNorms {
  const ErrorArgs& e;
  __device__ __forceinline__ double error(double a, double b) const {
    return e.norm == ErrorNorm::kLinf ? larger(b, a) : a + b;
  }
  __device__ __forceinline__ Norms operator()(const Norms& a, const Norms& b) const {
    return {error(a.error, b.error), a.measured + b.measured};
  }
  __device__ __forceinline__ Norms below(const Norms& sum, int distance) const {
    Norms other = {__shfl_down_sync(kAllLanes, sum.error, distance), 0};
    if (e.measure) other.measured = __shfl_down_sync(kAllLanes, sum.measured, distance);
    return other;
  }
};

// The parts of a block's sums, twice, and the sums of a sample's chunks.
struct ErrorScratch {
  Norms part[2][kThreads / kWarp];
  Norms chunk[2][kMostChunks];  // of the one or two samples of a block
};
static_assert(sizeof(ErrorScratch) % 16 == 0);

// Keeps, of the rows of a group, what the norms are made of.
template <typename F>
struct KeepError {
  using T = typename F::Number;
  static constexpr int kElements = F::kElements, kFours = kElements / 4;

  const ErrorArgs& e;
  int count;
  T error[kElements] = {}, size[kElements] = {};
  double measured[kFours] = {};

  __device__ __forceinline__ void operator()(int r, const T (&y)[kElements]) {
    if (r < e.error) return;
    const bool last = e.measure && r == e.rows.rows - 1;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (r == e.error)
        error[i] = y[i];
      else if (!last)
        size[i] = larger(magnitude(y[i]), size[i]);
      else if (F::kAligned || i < count)
        measured[i / 4] = measured[i / 4] + double(y[i]) * double(y[i]);
    }
  }

  // The sums of four elements.
  __device__ __forceinline__ Norms four(int n, T atol, T rtol) const {
    const AddNorms add = {e};
    Norms sum = {0, measured[n]};
#pragma unroll
    for (int i = 4 * n; i < 4 * n + 4; ++i) {
      const T scale = size[i] * rtol;
      T delta = atol;
      if (e.form == ErrorForm::kMax) delta = larger(atol, scale);
      if (e.form == ErrorForm::kSum) delta = atol + scale;
      const double q = double(magnitude(scaled_error(error[i], delta)));
      if (F::kAligned || i < count)
        sum.error = add.error(sum.error, e.norm == ErrorNorm::kLinf ? q : q * q);
    }
    return sum;
  }

  __device__ __forceinline__ Norms norms(T atol, T rtol) const {
    Norms sum = four(0, atol, rtol);
    if constexpr (kFours == 2) sum = AddNorms{e}(sum, four(1, atol, rtol));
    return sum;
  }
};

__device__ __forceinline__ void write_norms(const ErrorArgs& e, int64_t sample, Norms sum) {
  const int64_t elements = e.rows.elements;
  if (elements > 0 && e.norm == ErrorNorm::kL2) sum.error = root_mean(sum.error, elements);
  e.norms[2 * sample] = sum.error;
  e.norms[2 * sample + 1] = elements > 0 ? root_mean(sum.measured, elements) : 0.0;
}

// As resident() of `combine`, with registers for the sums.
template <typename F, int Columns, bool Noise>
constexpr int error_resident() {
  if (sizeof(typename F::Number) == sizeof(double) || (Columns > 8 && Noise)) return 1;
  if (F::kElements > kPerThread) return Columns <= 4 ? 2 : 1;
  return Columns <= 4 ? 3 : 2;
}

template <typename F, int Columns, bool Noise>
__global__ void __launch_bounds__(kThreads, (error_resident<F, Columns, Noise>()))
    error_kernel(const __grid_constant__ ErrorArgs e) {
  using T = typename F::Number;
  constexpr int per = F::kElements;
  extern __shared__ __align__(16) unsigned char shared[];
  ErrorScratch* scratch = reinterpret_cast<ErrorScratch*>(shared);
  T* weights = reinterpret_cast<T*>(shared + sizeof(ErrorScratch));
  const CombineCall& a = e.rows;
  const AddNorms add = {e};
  const Limits<T> limits = {T(a.low), T(a.high)};
  const int64_t groups = (a.elements + per - 1) / per;
  const int64_t chunks = error_chunks(a);
  const bool whole = gridDim.x == 1;  // this block makes all chunks of a sample
  const int64_t step = int64_t(gridDim.y) * blockDim.y;
  int turn = 0;
  for (int64_t first = int64_t(blockIdx.y) * blockDim.y; first < a.samples; first += step) {
    const T* mine = block_weights<T, Columns>(e.rows, first, weights);
    const int64_t sample = first + threadIdx.y;
    const bool active = sample < a.samples;  // inactive threads take part in the sums only
    const Stream stream = Noise && active ? stream_of(a, sample) : Stream{};
    const T atol = active ? T(e.tolerance[2 * sample]) : T(0);
    const T rtol = active ? T(e.tolerance[2 * sample + 1]) : T(0);
    bool finite = true;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x, turn ^= 1) {
      const int64_t group = chunk * (kErrorChunk / per) + threadIdx.x;
      Norms sum = {0, 0};
      if (active && group < groups) {
        const int64_t begin = group * per;
        const int count = F::kAligned ? per : int(min(int64_t(per), a.elements - begin));
        KeepError<F> keep{e, count};
        finite &= combine_group<F, Columns, Noise>(
            a, SharedWeights<T, Columns>{mine}, stream.word, DrawOfStream{stream}, limits,
            sample * a.elements + begin, uint32_t(group), count, keep);
        sum = keep.norms(atol, rtol);
      }
      sum = tree_sum(sum, scratch->part[turn], add);
      if (threadIdx.x > 0 || !active) continue;
      if (!whole) {
        double* partial = e.partials + 2 * (sample * chunks + chunk);
        partial[0] = sum.error;
        partial[1] = sum.measured;
      } else if (chunks == 1) {
        write_norms(e, sample, sum);
      } else {
        scratch->chunk[threadIdx.y][chunk] = sum;
        if (chunk == chunks - 1)
          write_norms(e, sample, tree_of_eight(scratch->chunk[threadIdx.y], int(chunks), add));
      }
    }
    if (a.status && !finite) report(a, sample);
  }
}

// Threads along x go through a chunk: a power of two up to a warp, or whole warps.
template <typename F>
Layout error_layout(const CombineCall& a, int64_t copy) {
  constexpr int per = F::kElements;
  int64_t x = std::min<int64_t>((a.elements + per - 1) / per, kErrorChunk / per);
  x = x >= kWarp ? (x + kWarp - 1) / kWarp * kWarp : int64_t(std::bit_ceil(uint64_t(x)));
  // A block of small samples is made of whole warps, as far as their weights allow.
  const int64_t most = int64_t(std::bit_floor(uint64_t(kSharedBytes / copy)));
  x = std::max(x, kWarp / std::min<int64_t>(most, kWarp));
  const int64_t samples = int64_t(std::bit_ceil(uint64_t(a.samples)));
  const int64_t least = std::max<int64_t>(1, kWarp / x);
  const int64_t y = std::max(least, std::min({kThreads / x, most, samples}));
  const int64_t grid_y = std::min<int64_t>((a.samples + y - 1) / y, 0x7fffffff);
  const int64_t chunks = error_chunks(a);
  const bool whole = chunks <= kFewChunks || (chunks <= kMostChunks && a.samples >= kManySamples);
  const int64_t grid_x = whole ? 1 : std::min<int64_t>(chunks, 0x7fffffff);
  return {dim3(unsigned(grid_x), unsigned(grid_y)), dim3(unsigned(x), unsigned(y))};
}

template <typename F, int Columns>
cudaError_t launch_error(const ErrorArgs& e, cudaStream_t stream) {
  const int64_t copy = e.rows.rows * Slots<Columns>::kStride * int64_t(sizeof(typename F::Number));
  const Layout layout = error_layout<F>(e.rows, copy);
  const auto kernel =
      e.rows.noises > 0 ? error_kernel<F, Columns, true> : error_kernel<F, Columns, false>;
  const size_t shared = sizeof(ErrorScratch) + layout.block.y * copy;
  const cudaError_t error = launch(kernel, layout, shared, stream, e);
  if (error != cudaSuccess || layout.grid.x == 1) return error;
  return launch_error_norms(e, stream);
}

}  // namespace
}  // namespace diffast::cuda
