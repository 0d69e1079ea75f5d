// The CUDA kernel of `evaluate`, run on the host. Op: diffast_emulated_evaluate::evaluate.
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"
#include "../../csrc/ops/evaluate/cuda.cu"
#include "../../csrc/ops/evaluate/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

void run_evaluate(const EvaluateArgs& args, const Tensor&) {
  STD_TORCH_CHECK(launch_evaluate(args, nullptr) == cudaSuccess, "evaluate: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_evaluate, CPU, m) {
  m.impl("evaluate", TORCH_BOX(&evaluate<run_evaluate>));
}

}  // namespace diffast::cuda
