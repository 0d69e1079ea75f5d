// The CUDA kernels of `sweep` and `gram`, run on the host. Ops: diffast_emulated_sweep.
// clang-format off: the stand-in comes first
#include "emulate_cuda.h"

// All threads of a block shuffle together: each leaves its number, then takes another one's.
inline double __shfl_down_sync(unsigned mask, double value, int distance) {
  static double left[diffast::cuda::kThreads];
  emulated::check(mask == 0xffffffffu, "a shuffle without some of the warp");
  const unsigned me = threadIdx.y * blockDim.x + threadIdx.x;
  emulated::check(blockDim.x * blockDim.y % 32 == 0, "a shuffle in a block of broken warps");
  left[me] = value;
  __syncthreads();
  const double other = me % 32 + distance < 32 ? left[me + distance] : value;
  __syncthreads();
  return other;
}

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
  set = set_call<GramArgs>;
  GramArgs g = args;
  Scratch<double> partials(g.rows.samples * gram_chunks(g.rows) * gram_sums(g));
  g.partials = partials.at;
  STD_TORCH_CHECK(launch_gram(g, nullptr) == cudaSuccess, "gram: not launched");
}

template <typename T>
void run_typed(SweepArgs a) {
  set = set_call<SweepArgs>;
  const int64_t noted = a.job_count * (sweep_chunks(a) - 1);
  Scratch<double> partials(a.job_count * (a.length + 1) * sweep_sums(a.elements));
  Scratch<T> ends(noted * 2 * a.elements), gains(noted);
  if (a.norms) a.partials = partials.at;
  a.ends = ends.at;
  a.gains = gains.at;
  STD_TORCH_CHECK(launch_sweep(a, nullptr) == cudaSuccess, "sweep: not launched");
}

void run_sweep(const SweepArgs& args, const Tensor&) {
  args.wide ? run_typed<double>(args) : run_typed<float>(args);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast_emulated_sweep, CPU, m) {
  m.impl("gram", TORCH_BOX(&gram<run_gram>));
  m.impl("sweep", TORCH_BOX(&sweep<run_sweep>));
}

}  // namespace diffast::cuda
