// From tensors to BrownianArgs, and `brownian`. Shared by the CPU and the CUDA glue. `last` may be
// an output itself: every element of it is read before it is written there.
#pragma once

#include "../../core/checks.h"
#include "args.h"
#include "tree.h"

namespace diffast {

inline bool set_brownian(BrownianArgs* a, const Tensor& streams, const Tensor& nodes,
                         const Tensor& weights, int64_t depth, const OptionalTensor& last,
                         const Tensor& increment, const OptionalTensor& value) {
  const ScalarType type = increment.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) return false;
  First first(increment);
  if (first.sizes.size() == 0 || !first.is_beside(increment)) return false;
  if (depth < 1 || depth > kMaxDepth || first.elements() > kDrawnLimit) return false;
  a->samples = first.samples();
  a->elements = first.elements();
  a->wide = type == ScalarType::Double;
  a->depth = int32_t(depth);
  if (!first.bind(&a->streams, streams, {a->samples, 3}) ||
      !first.bind(&a->nodes, nodes, {a->samples, 2}) ||
      !first.bind(&a->weights, weights, {a->samples, 2}))
    return false;
  for (const OptionalTensor* t : {&last, &value})
    if (t->has_value() && !((*t)->scalar_type() == type && first.is_like(**t))) return false;
  const int64_t count = a->samples * a->elements, bytes = a->wide ? 8 : 4;
  const auto write = [&](const Tensor& t) {
    return first.writes(t, count, bytes, type, Access::kInPlace);
  };
  a->last = last.has_value() ? first.reads(*last, count, bytes, type, Access::kInPlace) : nullptr;
  a->increment = write(increment);
  a->value = value.has_value() ? write(*value) : nullptr;
  return first.is_apart();
}

// `brownian` into given tensors [samples, ...], over a backend's
// `Run(const BrownianArgs&, const Tensor& increment)`.
template <auto Run>
void brownian_out(Tensor streams, Tensor nodes, Tensor weights, int64_t depth, OptionalTensor last,
                  Tensor increment, OptionalTensor value) {
  BrownianArgs a = {};
  need(set_brownian(&a, streams, nodes, weights, depth, last, increment, value), "brownian");
  Run(a, increment);
}

}  // namespace diffast
