// `quantile` on CUDA. A pass counts the magnitudes that begin with the digits found so far by their
// next digit, in shared memory, and adds a block's counts to the sample's. A second kernel then
// finds the digits of two order statistics, `rank` and `rank + 1`. The rows are made anew in each
// pass and never stored. Counts are whole numbers: no order of additions changes the result.

#include "../../cuda/launch.h"
#include "../../cuda/rows.cuh"
#include "keys.h"

namespace diffast::cuda {
namespace {

constexpr int kGroupsAThread = 4;  // or fewer, at the end of a sample

// One pass: keys are told apart by `bits` bits, behind which `shift` bits stand.
struct Pass {
  QuantileArgs q;
  int shift, bits;
};

__host__ __device__ QuantileState* states_of(const QuantileArgs& q) {
  return static_cast<QuantileState*>(q.scratch);
}

// The counts of a sample, [2, kDigits]: of the digits that follow those of each order statistic.
__device__ __forceinline__ uint32_t* counts_of(const QuantileArgs& q, int64_t sample) {
  uint32_t* first = reinterpret_cast<uint32_t*>(states_of(q) + q.rows.samples);
  return first + sample * 2 * kDigits;
}

__global__ void __launch_bounds__(kThreads) begin_kernel(const __grid_constant__ QuantileArgs q) {
  // Where the second order statistic has no weight, both are the first one.
  const uint32_t rank = uint32_t(q.rank), after = rank + (q.weight > 0.0 ? 1u : 0u);
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const int64_t total = q.rows.samples * 2 * kDigits;
  uint32_t* counts = counts_of(q, 0);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    counts[i] = 0;
    if (i < q.rows.samples) states_of(q)[i] = {{0, 0}, {rank, after}, 0, 0};
  }
}

// Counts the values of a group by their next digits.
template <typename T>
struct KeepCounts {
  uint32_t* counts;  // [2, kDigits], in shared memory
  QuantileState* state;
  uint64_t first, second;  // the digits so far
  int shift, bits;
  int count;

  __device__ __forceinline__ void operator()(int, const T (&y)[kPerThread]) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (i >= count) break;
      const Key<T> key = key_of(y[i]);
      if (key > kInfinityKey<T>) state->nan = 1;  // whoever writes, writes the same
      const Key<T> before = key >> shift >> bits;
      const uint32_t digit = uint32_t(key >> shift) & ((1u << bits) - 1u);
      if (before == Key<T>(first)) atomicAdd(counts + digit, 1u);
      if (second != first && before == Key<T>(second)) atomicAdd(counts + kDigits + digit, 1u);
    }
  }
};

template <typename T, int Columns, bool Aligned>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Pass pass) {
  extern __shared__ __align__(16) unsigned char shared[];
  const QuantileArgs& q = pass.q;
  const CombineArgs& a = q.rows;
  T* weights = reinterpret_cast<T*>(shared);
  uint32_t* counts = reinterpret_cast<uint32_t*>(weights + Slots<Columns>::kStride);
  const int64_t groups = (a.elements + kPerThread - 1) / kPerThread;
  for (int64_t sample = blockIdx.y; sample < a.samples; sample += gridDim.y) {
    QuantileState* state = states_of(q) + sample;
    const uint64_t first = state->digits[0], second = state->digits[1];
    const int used = first == second ? kDigits : 2 * kDigits;
    const T* mine = block_weights<T, Columns>(a, sample, weights);
    for (int i = int(threadIdx.x); i < used; i += int(blockDim.x)) counts[i] = 0;
    __syncthreads();
    for (int64_t block = blockIdx.x; block * blockDim.x < groups; block += gridDim.x) {
      const int64_t group = block * int64_t(blockDim.x) + threadIdx.x;
      if (group >= groups) continue;
      const int64_t begin = group * kPerThread;
      const int count = Aligned ? kPerThread : int(min(int64_t(kPerThread), a.elements - begin));
      KeepCounts<T> keep = {counts, state, first, second, pass.shift, pass.bits, count};
      combine_group<AnyTypes<T, Aligned>, Columns, false>(
          a, SharedWeights<T, Columns>{mine}, 0, DrawNone{}, Limits<T>{},
          sample * a.elements + begin, uint32_t(group), count, keep);
    }
    __syncthreads();
    uint32_t* total = counts_of(q, sample);
    for (int i = int(threadIdx.x); i < used; i += int(blockDim.x))
      if (counts[i] > 0) atomicAdd(total + i, counts[i]);
  }
}

// Sums over the threads before and up to each one, of a block of kThreads; `sums` has room for one
// number a thread.
__device__ __forceinline__ uint32_t inclusive_sum(uint32_t value, uint32_t* sums) {
  const int me = int(threadIdx.x);
  sums[me] = value;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {
    const uint32_t before = me >= distance ? sums[me - distance] : 0u;
    __syncthreads();
    sums[me] += before;
    __syncthreads();
  }
  return sums[me];
}

// What the threads of a block tell each other about a sample.
struct FoundDigits {
  uint32_t sums[kThreads];
  uint32_t digit[2], lesser[2];
};

// Finds the digits of both order statistics of a sample. After the last pass it writes the
// quantile, before it clears the counts for the next one.
template <typename T>
__global__ void __launch_bounds__(kThreads) find_kernel(const __grid_constant__ Pass pass) {
  constexpr int each = kDigits / kThreads;
  extern __shared__ __align__(16) unsigned char shared[];
  FoundDigits& found = *reinterpret_cast<FoundDigits*>(shared);
  const QuantileArgs& q = pass.q;
  for (int64_t sample = blockIdx.x; sample < q.rows.samples; sample += gridDim.x) {
    QuantileState* state = states_of(q) + sample;
    uint32_t* counts = counts_of(q, sample);
    const uint64_t first = state->digits[0], second = state->digits[1];
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      // Keys with the same digits so far were counted once.
      const uint32_t* from = counts + (which == 1 && first != second ? kDigits : 0);
      const int begin = int(threadIdx.x) * each;
      uint32_t sum = 0;
      for (int i = 0; i < each; ++i) sum += from[begin + i];
      const uint32_t rank = state->rank[which];
      uint32_t lesser = inclusive_sum(sum, found.sums) - sum;
      if (rank >= lesser && rank - lesser < sum) {
        int digit = begin;
        while (rank - lesser >= from[digit]) lesser += from[digit++];
        found.digit[which] = uint32_t(digit);
        found.lesser[which] = lesser;
      }
    }
    __syncthreads();
    const Key<T> below = Key<T>(first) << pass.bits | Key<T>(found.digit[0]);
    const Key<T> above = Key<T>(second) << pass.bits | Key<T>(found.digit[1]);
    if (pass.shift == 0) {
      if (threadIdx.x == 0)
        q.out[sample] = state->nan
                            ? magnitude_of<T>(kInfinityKey<T> + 1)
                            : between(magnitude_of<T>(below), magnitude_of<T>(above), q.weight);
      __syncthreads();  // before the next sample's digits are written
      continue;
    }
    __syncthreads();  // all threads have read the counts and the state
    for (int i = int(threadIdx.x); i < 2 * kDigits; i += int(blockDim.x)) counts[i] = 0;
    if (threadIdx.x < 2) {
      state->digits[threadIdx.x] = threadIdx.x == 0 ? below : above;
      state->rank[threadIdx.x] -= found.lesser[threadIdx.x];
    }
    __syncthreads();
  }
}

template <typename T, int Columns, bool Aligned>
cudaError_t launch_passes(const QuantileArgs& q, cudaStream_t stream) {
  const int64_t samples = q.rows.samples, groups = (q.rows.elements + kPerThread - 1) / kPerThread;
  const int64_t parts = (groups + kThreads * kGroupsAThread - 1) / (kThreads * kGroupsAThread);
  const Layout counting = layout_of(samples, kThreads, parts, 1);
  const size_t shared =
      Slots<Columns>::kStride * sizeof(T) + size_t(2) * kDigits * sizeof(uint32_t);
  const int64_t blocks = std::min(samples, kBlocks);
  const Layout finding = {dim3(unsigned(blocks)), dim3(kThreads)};
  cudaError_t error = launch(begin_kernel, finding, 0, stream, q);
  int before = kKeyBits<T>;
  while (error == cudaSuccess && before > 0) {
    const int shift = next_shift(before);
    const Pass pass = {q, shift, before - shift};
    error = launch(count_kernel<T, Columns, Aligned>, counting, shared, stream, pass);
    if (error == cudaSuccess)
      error = launch(find_kernel<T>, finding, sizeof(FoundDigits), stream, pass);
    before = shift;
  }
  return error;
}

template <typename T, bool Aligned>
cudaError_t launch_inputs(const QuantileArgs& q, cudaStream_t stream) {
  const int inputs = q.rows.inputs;
  if (inputs <= 2) return launch_passes<T, 2, Aligned>(q, stream);
  if (inputs <= 4) return launch_passes<T, 4, Aligned>(q, stream);
  return launch_passes<T, kMaxQuantileInputs, Aligned>(q, stream);
}

}  // namespace

cudaError_t launch_quantile(const QuantileArgs& q, cudaStream_t stream) {
  if (q.rows.samples == 0) return cudaSuccess;
  return launch_rows(
      q.rows, [&]<typename T, bool Aligned>() { return launch_inputs<T, Aligned>(q, stream); });
}

}  // namespace diffast::cuda
