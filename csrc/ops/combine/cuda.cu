// `combine` on CUDA: which kernel serves a call.

#include "../../cuda/launch.h"
#include "kernels.cuh"

namespace diffast::cuda {
namespace {

// Float64 and unaligned tensors are rare and have fewer instances. A column that an instance has
// beyond the call's inputs costs no memory traffic.
template <typename T, bool Aligned>
cudaError_t launch_inputs(const CombineArgs& a, cudaStream_t stream) {
  using F = AnyTypes<T, Aligned>;
  constexpr int most = 8;
  if constexpr (Aligned && sizeof(T) == sizeof(float)) {
    if (!a.weight_table) {
      if (a.inputs > most) return launch_host<F, kMaxInputs>(a, stream);
      return with_known<1, most>(a.inputs, [&]<int Columns>(Known<Columns>) {
        return launch_host<F, Columns>(a, stream);
      });
    }
    if (a.inputs == 3) return launch_shared<F, 3>(a, stream);
    if (a.inputs == 5 || a.inputs == 6) return launch_shared<F, 6>(a, stream);
  }
  if (a.inputs <= 2) return launch_shared<F, 2>(a, stream);
  if (a.inputs <= 4) return launch_shared<F, 4>(a, stream);
  if (a.inputs <= most) return launch_shared<F, most>(a, stream);
  return launch_shared<F, kMaxInputs>(a, stream);
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.samples * args.elements == 0) return cudaSuccess;
  CombineArgs a = args;
  const bool per_sample = a.weight_table || a.noises > 0 || a.status;
  if (!per_sample) {
    a.elements *= a.samples;
    a.samples = 1;
  }
  if (is_one_half_type(a)) return launch_combine_half(a, stream);
  return launch_rows(
      a, [&]<typename T, bool Aligned>() { return launch_inputs<T, Aligned>(a, stream); });
}

}  // namespace diffast::cuda
