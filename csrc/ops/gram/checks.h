// From tensors to GramArgs, with the checks `gram` makes beyond those of a table of weights;
// ops/checks_gram.py says them once more, and a test compares the two.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

// `gram`, over a backend's `Run(const GramArgs&, const Tensor& first)`.
template <auto Run>
void gram(std::vector<Tensor> xs, Tensor weights, Tensor sums) {
  GramArgs g;
  g.rows = table_args(xs, weights, std::nullopt, std::nullopt, {});
  CombineArgs& a = g.rows;
  STD_TORCH_CHECK(a.inputs <= kMaxGramInputs && a.rows <= kMaxGramRows, "gram: ", int(a.inputs),
                  " inputs and ", int(a.rows), " rows but at most ", kMaxGramInputs, " and ",
                  kMaxGramRows, " are supported");
  for (int r = 0; r < kMaxRows; ++r) {
    a.y[r] = nullptr;
    a.y_type[r] = DType::kFloat32;
  }
  a.status = nullptr;
  check_per_sample("gram", "sums", sums, ScalarType::Double, {a.samples, gram_sums(g)}, xs[0]);
  g.sums = static_cast<double*>(sums.mutable_data_ptr());
  g.partials = nullptr;
  Run(g, xs[0]);
}

}  // namespace diffast
