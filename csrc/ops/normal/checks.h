// From tensors to NormalArgs, and `normal`. Shared by the CPU and the CUDA glue.
#pragma once

#include <cmath>

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

inline bool set_normal(NormalArgs* a, const Tensor& ids, int64_t seed, int64_t stage, double scale,
                       const Tensor& out) {
  First first(out);
  const ScalarType type = out.scalar_type();
  if (!to_dtype(type, &a->y_type) || first.sizes.size() == 0) return false;
  if (!first.is_beside(out) || !first.bind(&a->ids, ids, {first.samples()})) return false;
  a->seed = uint64_t(seed);
  a->samples = first.samples();
  a->elements = first.elements();
  a->y = first.writes(out, a->samples * a->elements, dtype_bytes(a->y_type), type);
  a->word = uint32_t(stage);
  a->scale = scale;
  return std::isfinite(scale) && is_word(stage) && a->elements <= kDrawnLimit && first.is_apart();
}

// `normal` into a given tensor [samples, ...], over a backend's
// `Run(const NormalArgs&, const Tensor& out)`.
template <auto Run>
void normal_out(Tensor ids, int64_t seed, int64_t stage, double scale, Tensor out) {
  NormalArgs a;
  need(set_normal(&a, ids, seed, stage, scale, out), "normal");
  Run(a, out);
}

}  // namespace diffast
