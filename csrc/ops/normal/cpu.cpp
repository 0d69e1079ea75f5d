// `normal` on the CPU.
#include <algorithm>

#include "../../cpu/chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

void run(const NormalArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  const Kernels& kernel = kernels();
  const int64_t chunks = (a.elements + kChunk - 1) / kChunk;
  const int64_t average = std::max<int64_t>(1, a.elements / chunks);
  const float scale = float(a.scale);
  const auto work = [&](int64_t from, int64_t to) {
    alignas(64) float single[kChunk];
    alignas(64) double wide[kChunk];
    for (int64_t item = from; item < to; ++item) {
      const int64_t sample = item / chunks;
      const int64_t begin = item % chunks * kChunk;
      const int64_t count = std::min(kChunk, a.elements - begin);
      void* y = at(a.y, a.y_type, sample * a.elements + begin);
      float* z = a.y_type == DType::kFloat32 ? static_cast<float*>(y) : single;
      kernel.normals(z, count, uint32_t(begin / 4), a.word, uint64_t(a.ids[sample]), a.seed);
      if (a.y_type == DType::kFloat64) {
        for (int64_t i = 0; i < count; ++i) wide[i] = a.scale * double(z[i]);
        memcpy(y, wide, count * sizeof(double));
        continue;
      }
      if (a.scale != 1.0)
        for (int64_t i = 0; i < count; ++i) z[i] = scale * z[i];
      if (z == single) narrow(kernel, a.y_type, z, y, count);
    }
  };
  share_out(a.samples * chunks, std::max<int64_t>(1, kNoiseGrain / average), work);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("normal.out", TORCH_BOX(&normal_out<run>)); }

}  // namespace diffast::cpu

// For the report of which backend runs: read by name, no torch types.
extern "C" __attribute__((visibility("default"))) const char* diffast_cpu_isa() {
  return diffast::cpu::kernels().name;
}
