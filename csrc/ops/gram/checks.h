// From tensors to GramArgs, and `gram`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

inline bool set_gram(GramArgs* g, const std::vector<Tensor>& xs, First& first,
                     const Tensor& weights, const Tensor& sums) {
  CombineArgs& a = g->rows;
  if (!set_table(&a, xs, first, weights, std::nullopt, std::nullopt, {})) return false;
  if (a.inputs > kMaxGramInputs || a.rows > kMaxGramRows) return false;
  // The width tells whether the sums of the rows' elements are wanted.
  g->totals = sums.dim() == 2 && sums.size(1) > gram_sums(*g);
  return first.bind(&g->sums, sums, {a.samples, gram_sums(*g)}) && first.is_apart();
}

// `gram`, over a backend's `Run(const GramArgs&, const Tensor& first)`.
template <auto Run>
void gram(std::vector<Tensor> xs, Tensor weights, Tensor sums) {
  First first = first_of(xs, "gram");
  GramArgs g;
  need(set_gram(&g, xs, first, weights, sums), "gram");
  Run(g, xs[0]);
}

}  // namespace diffast
