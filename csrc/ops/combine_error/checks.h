// From tensors to ErrorArgs, and the forms of `combine_error`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

// Everything but the outputs and the norms.
inline bool set_error(ErrorArgs* e, const std::vector<Tensor>& xs, First& first,
                      const Tensor& weights, const OptionalTensor& noise,
                      const OptionalTensor& streams, const std::vector<double>& clamp,
                      const Tensor& tolerance, int64_t form, int64_t norm, bool measure) {
  if (form < 0 || form > int(ErrorForm::kSum)) return false;
  if (norm < 0 || norm > int(ErrorNorm::kLinf)) return false;
  e->form = ErrorForm(form);
  e->norm = ErrorNorm(norm);
  e->measure = measure;
  CombineArgs& a = e->rows;
  if (!set_table(&a, xs, first, weights, noise, streams, clamp)) return false;
  // The error row and those behind it.
  const int behind = 1 + (e->form == ErrorForm::kScalar ? 0 : 2) + (measure ? 1 : 0);
  if (a.rows < behind + (a.clamp ? 1 : 0)) return false;
  e->error = int8_t(a.rows - behind);
  return first.bind(&e->tolerance, tolerance, {a.samples, 2});
}

inline int stored_rows(const ErrorArgs& e) { return e.error - (e.rows.clamp ? 1 : 0); }

// The outputs are checked as rows 0, 1, ... of a call that has no others.
inline bool set_error_outputs(ErrorArgs* e, const std::vector<Tensor>& outs, const Tensor& norms,
                              First& first) {
  const int stored = stored_rows(*e);
  CombineArgs& a = e->rows;
  CombineArgs only = a;
  only.rows = int8_t(stored);
  only.clamp = false;
  if (!set_outputs(&only, outs, first)) return false;
  a.wide = only.wide;
  for (int out = 0; out < stored; ++out) {
    const int r = out + (a.clamp ? 1 : 0);
    a.y[r] = only.y[out];
    a.y_type[r] = only.y_type[out];
  }
  return first.bind(&e->norms, norms, {a.samples, 2});
}

// The two forms of `combine_error`, over a backend's `Run(const ErrorArgs&, const Tensor& first)`.
template <auto Run>
std::vector<Tensor> combine_error(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                                  OptionalTensor streams, std::vector<double> clamp,
                                  Tensor tolerance, int64_t form, int64_t norm, bool measure) {
  First first = first_of(xs, "combine_error");
  ErrorArgs e;
  need(set_error(&e, xs, first, weights, noise, streams, clamp, tolerance, form, norm, measure),
       "combine_error");
  std::vector<Tensor> outs = new_outputs(e.rows, first, stored_rows(e));
  Tensor norms = torch::stable::new_empty(xs[0], tolerance.sizes(), ScalarType::Double);
  need(set_error_outputs(&e, outs, norms, first), "combine_error");
  Run(e, xs[0]);
  outs.push_back(norms);
  return outs;
}

template <auto Run>
void combine_error_out(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                       OptionalTensor streams, std::vector<double> clamp, Tensor tolerance,
                       int64_t form, int64_t norm, bool measure, std::vector<Tensor> outs,
                       Tensor norms, OptionalTensor status) {
  First first = first_of(xs, "combine_error");
  ErrorArgs e;
  // A status needs streams, which hold the stage to report.
  need(set_error(&e, xs, first, weights, noise, streams, clamp, tolerance, form, norm, measure) &&
           set_error_outputs(&e, outs, norms, first) && set_status(&e.rows, status, first) &&
           (!e.rows.status || e.rows.streams) && first.is_apart(),
       "combine_error");
  Run(e, xs[0]);
}

}  // namespace diffast
