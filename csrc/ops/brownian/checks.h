// From tensors to BrownianArgs, and `brownian`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../../core/checks.h"
#include "args.h"
#include "tree.h"

namespace diffast {

// Whether the outputs share no memory, with each other or with `last`. `last` may be an output
// itself, since every element of it is read before it is written there.
inline bool outputs_are_apart(const BrownianArgs& a) {
  const int64_t numel = a.samples * a.elements;
  const DType type = a.wide ? DType::kFloat64 : DType::kFloat32;
  const auto apart = [&](const void* x, const void* y) {
    return !Span(x, numel, type).overlaps(Span(y, numel, type));
  };
  if (a.value && !apart(a.value, a.increment)) return false;
  if (!a.last) return true;
  return (a.last == a.increment || apart(a.last, a.increment)) &&
         (!a.value || a.last == a.value || apart(a.last, a.value));
}

inline bool set_brownian(BrownianArgs* a, const Tensor& streams, const Tensor& nodes,
                         const Tensor& weights, int64_t depth, const OptionalTensor& last,
                         const Tensor& increment, const OptionalTensor& value) {
  const ScalarType type = increment.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) return false;
  const First first(increment);
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
  a->last = last.has_value() ? last->const_data_ptr() : nullptr;
  a->increment = increment.mutable_data_ptr();
  a->value = value.has_value() ? value->mutable_data_ptr() : nullptr;
  return outputs_are_apart(*a);
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
