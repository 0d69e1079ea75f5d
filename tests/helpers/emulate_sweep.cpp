// The CUDA kernels of `sweep` and `gram`, run on the host. Ops: diffast_emulated_sweep.
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"
#include "../../csrc/ops/gram/cuda.cu"
#include "../../csrc/ops/sweep/cuda.cu"
#include "../../csrc/ops/gram/checks.h"
#include "../../csrc/ops/sweep/checks.h"
// clang-format on

namespace diffast::cuda {
namespace {

// Scratch is NaN, until a kernel writes.
template <typename Number>
struct Scratch {
  std::vector<Number> numbers;
  Number* at;
  explicit Scratch(int64_t size) : numbers(size + 8, Number(NAN)) {
    at = numbers.data();  // where wide accesses may go
    while (reinterpret_cast<uintptr_t>(at) % 16) ++at;
  }
};

void run_gram(const GramArgs& args, const Tensor&) {
  GramArgs g = args;
  Scratch<double> partials(g.rows.samples * gram_chunks(g.rows) * gram_sums(g));
  g.partials = partials.at;
  STD_TORCH_CHECK(launch_gram(g, nullptr) == cudaSuccess, "gram: not launched");
}

void run_sweep(const SweepArgs& args, const Tensor&) {
  SweepArgs a = args;
  Scratch<double> partials(a.job_count * (a.length + 1) * sweep_sums(a.elements));
  if (a.norms) a.partials = partials.at;
  STD_TORCH_CHECK(launch_sweep(a, nullptr) == cudaSuccess, "sweep: not launched");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_sweep, CPU, m) {
  m.impl("gram", TORCH_BOX(&gram<run_gram>));
  m.impl("sweep", TORCH_BOX(&sweep<run_sweep>));
}

}  // namespace diffast::cuda
