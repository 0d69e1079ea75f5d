// The CUDA kernels of `combine_error`, run on the host. Ops: diffast_emulated_error.
#define DIFFAST_MOST_BLOCKS 256
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"
#include "../../csrc/ops/combine_error/cuda.cu"
#include "../../csrc/ops/combine_error/cuda_half.cu"
#include "../../csrc/ops/combine_error/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

void run_combine_error(const ErrorArgs& args, const Tensor& first) {
  ErrorArgs e = args;
  const int64_t chunks = error_chunks(e.rows);
  // NaN, until the first kernel writes.
  std::vector<double> partials(chunks > 1 ? e.rows.samples * chunks * 2 : 0, NAN);
  e.partials = partials.data();
  STD_TORCH_CHECK(launch_combine_error(e, nullptr) == cudaSuccess, "combine_error: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_error, CPU, m) {
  m.impl("combine_error", TORCH_BOX(&combine_error<run_combine_error>));
  m.impl("combine_error.out", TORCH_BOX(&combine_error_out<run_combine_error>));
}

}  // namespace diffast::cuda
