// `combine` on CUDA where all tensors are float16, or all are bfloat16: a thread takes eight
// elements, and no instruction asks for a type.

#include "kernels.cuh"

namespace diffast::cuda {
namespace {

template <DType Type>
cudaError_t launch_type(const CombineArgs& a, cudaStream_t stream) {
  using F = OneType<Type>;
  if (a.weight_table) {
    if (a.inputs <= 2) return launch_shared<F, 2>(a, stream);
    if (a.inputs <= 4) return launch_shared<F, 4>(a, stream);
    return launch_shared<F, 8>(a, stream);
  }
  if (a.inputs == 1) return launch_host<F, 1>(a, stream);
  if (a.inputs == 2) return launch_host<F, 2>(a, stream);
  if (a.inputs == 3) return launch_host<F, 3>(a, stream);
  if (a.inputs == 4) return launch_host<F, 4>(a, stream);
  if (a.inputs <= 6) return launch_host<F, 6>(a, stream);
  return launch_host<F, 8>(a, stream);
}

}  // namespace

cudaError_t launch_combine_half(const CombineArgs& a, cudaStream_t stream) {
  return a.x_type[0] == DType::kFloat16 ? launch_type<DType::kFloat16>(a, stream)
                                        : launch_type<DType::kBFloat16>(a, stream);
}

}  // namespace diffast::cuda
