// The CUDA kernels of `quantile`, run on the host. Op: diffast_emulated_quantile.
// clang-format off: the stand-in comes first
#define DIFFAST_MOST_BLOCKS 6  // small batches walk over the grid
#include "emulate_cuda.h"
#include "../../csrc/ops/quantile/cuda.cu"
#include "../../csrc/ops/quantile/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

void run_quantile(const QuantileArgs& args, const Tensor&) {
  QuantileArgs q = args;
  // All ones, until a kernel writes.
  std::vector<uint64_t> scratch(quantile_words(q.rows.samples, kDigits), ~uint64_t(0));
  q.scratch = scratch.data();
  STD_TORCH_CHECK(launch_quantile(q, nullptr) == cudaSuccess, "quantile: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_quantile, CPU, m) {
  m.impl("quantile", TORCH_BOX(&quantile<run_quantile>));
}

}  // namespace diffast::cuda
