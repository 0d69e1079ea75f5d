// From tensors to QuantileArgs, and `quantile`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

inline bool set_quantile(QuantileArgs* q, const std::vector<Tensor>& xs, First& first,
                         const Tensor& weights, double p, const Tensor& out) {
  CombineArgs& a = q->rows;
  if (!(p >= 0.0 && p <= 1.0)) return false;
  if (!set_table(&a, xs, first, weights, std::nullopt, std::nullopt, {})) return false;
  if (a.inputs > kMaxQuantileInputs || a.rows != 1) return false;
  if (a.elements > kMaxQuantileElements || (a.samples > 0 && a.elements == 0)) return false;
  const double position = p * double(std::max<int64_t>(a.elements - 1, 0));
  q->rank = int64_t(position);
  q->weight = position - double(q->rank);
  return first.bind(&q->out, out, {a.samples}) && first.is_apart();
}

// `quantile`, over a backend's `Run(const QuantileArgs&, const Tensor& first)`.
template <auto Run>
void quantile(std::vector<Tensor> xs, Tensor weights, double p, Tensor out) {
  First first = first_of(xs, "quantile");
  QuantileArgs q;
  need(set_quantile(&q, xs, first, weights, p, out), "quantile");
  Run(q, xs[0]);
}

}  // namespace diffast
