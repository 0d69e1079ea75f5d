// `accept` on CUDA. A first kernel decides: a thread takes a sample and writes its route. A second
// kernel copies the rows that the routes ask for.

#include "../../cuda/elements.cuh"
#include "../../cuda/launch.h"
#include "decision.h"

namespace diffast::cuda {
namespace {

constexpr int kDecideThreads = 64;  // small blocks spread few samples over many multiprocessors

__global__ void __launch_bounds__(kDecideThreads)
    decide_kernel(const __grid_constant__ AcceptArgs a) {
  const int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b < a.samples) a.route[b] = accept_sample(a, b);
}

// Copies unit `unit` of a sample's row, if the row has so many. A thread copies the same bytes of
// all tensors of one type, so moves need no barrier between them.
template <typename Unit>
__device__ __forceinline__ void copy_unit(const AcceptMove& move, int64_t elements, int64_t sample,
                                          int64_t unit) {
  const int64_t units = elements * move.item / int64_t(sizeof(Unit));
  if (unit >= units) return;
  const int64_t at = sample * units + unit;
  static_cast<Unit*>(move.to)[at] = static_cast<const Unit*>(move.from)[at];
}

template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ AcceptArgs a, const int64_t units) {
  const int64_t sample_step = int64_t(gridDim.y) * blockDim.y;
  const int64_t unit_step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t sample = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; sample < a.samples;
       sample += sample_step) {
    const int32_t route = a.route[sample];
    if (route == kNoRoute) continue;
    for (int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; unit < units;
         unit += unit_step) {
      for (int i = 0; i < a.moves; ++i)
        if (a.move[i].route == route) copy_unit<Unit>(a.move[i], a.elements, sample, unit);
    }
  }
}

// The largest number of bytes, 16 at most, that all pointers and row sizes are multiples of.
int64_t common_bytes(const AcceptArgs& a) {
  uintptr_t bits = 16;
  for (int i = 0; i < a.moves; ++i) {
    const AcceptMove& move = a.move[i];
    bits |= reinterpret_cast<uintptr_t>(move.from) | reinterpret_cast<uintptr_t>(move.to) |
            uintptr_t(a.elements * move.item);
  }
  return int64_t(bits & (~bits + 1));
}

template <typename Unit>
cudaError_t launch_copy(const AcceptArgs& a, cudaStream_t stream) {
  int32_t longest = 0;
  for (int i = 0; i < a.moves; ++i) longest = std::max(longest, a.move[i].item);
  const int64_t units = a.elements * longest / int64_t(sizeof(Unit));
  return launch(copy_kernel<Unit>, layout_of(a.samples, units), 0, stream, a, units);
}

}  // namespace

cudaError_t launch_accept(const AcceptArgs& a, cudaStream_t stream) {
  if (a.samples == 0) return cudaSuccess;
  const int64_t blocks = (a.samples + kDecideThreads - 1) / kDecideThreads;
  const Layout layout = {dim3(unsigned(blocks)), dim3(kDecideThreads)};
  const cudaError_t error = launch_exactly(decide_kernel, layout, 0, stream, a);
  if (error != cudaSuccess || a.elements == 0 || a.moves == 0) return error;
  const int64_t bytes = common_bytes(a);
  if (bytes == 16) return launch_copy<uint4>(a, stream);
  if (bytes >= 4) return launch_copy<uint32_t>(a, stream);
  return launch_copy<uint16_t>(a, stream);
}

}  // namespace diffast::cuda
