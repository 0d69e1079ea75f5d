// `combine_error` on CUDA where all tensors are float16, or all are bfloat16.

#include "kernels.cuh"

namespace diffast::cuda {
namespace {

template <DType Type>
cudaError_t launch_type(const ErrorArgs& e, cudaStream_t stream) {
  using F = OneType<Type>;
  if (e.rows.inputs <= 2) return launch_error<F, 2>(e, stream);
  if (e.rows.inputs <= 4) return launch_error<F, 4>(e, stream);
  return launch_error<F, 8>(e, stream);
}

}  // namespace

cudaError_t launch_error_half(const ErrorArgs& e, cudaStream_t stream) {
  return e.rows.x_type[0] == DType::kFloat16 ? launch_type<DType::kFloat16>(e, stream)
                                             : launch_type<DType::kBFloat16>(e, stream);
}

}  // namespace diffast::cuda
