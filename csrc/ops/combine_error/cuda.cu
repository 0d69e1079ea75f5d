// `combine_error` on CUDA: which kernel serves a call, and the kernel that adds up chunks.

#include "../../cuda/launch.h"
#include "kernels.cuh"

namespace diffast::cuda {
namespace {

// A warp takes one sample: lane i adds chunks i, i + 32, i + 64, ...; then lanes are added up.
__global__ void __launch_bounds__(kThreads) norms_kernel(const __grid_constant__ ErrorArgs e) {
  const AddNorms add = {e};
  const int64_t chunks = error_chunks(e.rows);
  const int64_t step = int64_t(gridDim.x) * blockDim.y;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.y; first < e.rows.samples; first += step) {
    const int64_t sample = first + threadIdx.y;
    const bool active = sample < e.rows.samples;
    const double* partial = e.partials + 2 * sample * chunks;
    Norms sum = {0, 0};
#pragma unroll 4
    for (int64_t i = threadIdx.x; active && i < chunks; i += kWarp)
      sum = add(sum, Norms{partial[2 * i], partial[2 * i + 1]});
    sum = tree_sum(sum, static_cast<Norms*>(nullptr), add);  // of one warp: no shared memory
    if (threadIdx.x == 0 && active) write_norms(e, sample, sum);
  }
}

// As for `combine`, with fewer instances for the common kinds as well.
template <typename T, bool Aligned>
cudaError_t launch_inputs(const ErrorArgs& e, cudaStream_t stream) {
  using F = AnyTypes<T, Aligned>;
  const int inputs = e.rows.inputs;
  if (inputs <= 2) return launch_error<F, 2>(e, stream);
  if constexpr (Aligned && sizeof(T) == sizeof(float)) {
    if (inputs == 3) return launch_error<F, 3>(e, stream);
    if (inputs == 5) return launch_error<F, 5>(e, stream);
    if (inputs == 6) return launch_error<F, 6>(e, stream);
  }
  if (inputs <= 4) return launch_error<F, 4>(e, stream);
  if (inputs <= 8) return launch_error<F, 8>(e, stream);
  return launch_error<F, kMaxInputs>(e, stream);
}

}  // namespace

cudaError_t launch_error_norms(const ErrorArgs& e, cudaStream_t stream) {
  return launch(norms_kernel, sums_layout(e.rows.samples), 0, stream, e);
}

cudaError_t launch_combine_error(const ErrorArgs& e, cudaStream_t stream) {
  const CombineCall& a = e.rows;
  if (a.samples == 0) return cudaSuccess;
  if (a.elements == 0) return launch_error_norms(e, stream);
  if (is_one_half_type(a)) return launch_error_half(e, stream);
  return launch_rows(
      a, [&]<typename T, bool Aligned>() { return launch_inputs<T, Aligned>(e, stream); });
}

}  // namespace diffast::cuda
