// The CUDA kernels of `combine` and `normal`, run on the host. Ops: diffast_emulated.
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"
#include "../../csrc/ops/combine/cuda.cu"
#include "../../csrc/ops/combine/cuda_half.cu"
#include "../../csrc/ops/normal/cuda.cu"
#include "../../csrc/ops/combine/checks.h"
#include "../../csrc/ops/normal/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

void run_combine(const CombineArgs& args, const Tensor&) {
  STD_TORCH_CHECK(launch_combine(args, nullptr) == cudaSuccess, "combine: not launched");
}

void run_normal(const NormalArgs& args, const Tensor&) {
  STD_TORCH_CHECK(launch_normal(args, nullptr) == cudaSuccess, "normal: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated, CPU, m) {
  m.impl("combine", TORCH_BOX(&combine<run_combine>));
  m.impl("combine.out", TORCH_BOX(&combine_out<run_combine>));
  m.impl("combine.table", TORCH_BOX(&combine_table<run_combine>));
  m.impl("combine.table_out", TORCH_BOX(&combine_table_out<run_combine>));
  m.impl("normal.out", TORCH_BOX(&normal_out<run_normal>));
}

}  // namespace diffast::cuda
