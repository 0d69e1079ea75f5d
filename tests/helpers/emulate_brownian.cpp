// The CUDA kernel of `brownian`, run on the host. Ops: diffast_emulated_brownian.
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"
#include "../../csrc/ops/brownian/cuda.cu"
#include "../../csrc/ops/brownian/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

void run_brownian(const BrownianArgs& args, const Tensor&) {
  STD_TORCH_CHECK(launch_brownian(args, nullptr) == cudaSuccess, "brownian: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_brownian, CPU, m) {
  m.impl("brownian.out", TORCH_BOX(&brownian_out<run_brownian>));
}

}  // namespace diffast::cuda
