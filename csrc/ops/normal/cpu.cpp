// `normal` on the CPU.
#include "../../cpu/chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

void run(const NormalArgs& a, const Tensor&) {
  if (a.samples * a.elements == 0) return;
  const Kernels& kernel = kernels();
  const float scale = float(a.scale);
  share_chunks(a.samples, a.elements, kChunk, kNoiseGrain, [&](const auto& each) {
    alignas(64) float single[kChunk];
    each([&](int64_t, int64_t sample, int64_t begin, int64_t count) {
      void* y = at(a.y, a.y_type, sample * a.elements + begin);
      float* z = a.y_type == DType::kFloat32 ? static_cast<float*>(y) : single;
      kernel.normals(z, count, uint32_t(begin / 4), a.word, uint64_t(a.ids[sample]), a.seed);
      if (a.y_type == DType::kFloat64) {
        double* wide = static_cast<double*>(y);
        for (int64_t i = 0; i < count; ++i) wide[i] = a.scale * double(z[i]);
        return;
      }
      if (a.scale != 1.0)
        for (int64_t i = 0; i < count; ++i) z[i] = scale * z[i];
      if (z == single) narrow(kernel, a.y_type, z, y, count);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("normal.out", TORCH_BOX(&normal_out<run>)); }

}  // namespace diffast::cpu

// For the report of which backend runs: read by name, no torch types.
extern "C" __attribute__((visibility("default"))) const char* diffast_cpu_isa() {
  return diffast::cpu::kernels().name;
}
