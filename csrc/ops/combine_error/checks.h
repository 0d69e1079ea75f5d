// From tensors to ErrorArgs, with every check `combine_error` makes beyond those of a table of
// weights; ops/checks_error.py says them once more, and a test compares the two.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

inline const char* form_text(ErrorForm form) {
  return form == ErrorForm::kScalar ? "scalar" : form == ErrorForm::kMax ? "max" : "sum";
}

// Everything but the outputs and the norms.
inline ErrorArgs error_args(const std::vector<Tensor>& xs, const Tensor& weights,
                            const OptionalTensor& noise, const OptionalTensor& streams,
                            const std::vector<double>& clamp, const Tensor& tolerance, int64_t form,
                            int64_t norm, bool measure) {
  ErrorArgs e;
  STD_TORCH_CHECK(form >= 0 && form <= int(ErrorForm::kSum), "combine_error: form ", form,
                  " but 0 (scalar), 1 (max) and 2 (sum) are known");
  STD_TORCH_CHECK(norm >= 0 && norm <= int(ErrorNorm::kLinf), "combine_error: norm ", norm,
                  " but 0 (l2) and 1 (linf) are known");
  e.form = ErrorForm(form);
  e.norm = ErrorNorm(norm);
  e.measure = measure;
  e.rows = table_args(xs, weights, noise, streams, clamp);
  CombineArgs& a = e.rows;
  const int behind = 1 + (e.form == ErrorForm::kScalar ? 0 : 2) + (measure ? 1 : 0);
  const int unstored = behind + (a.clamp ? 1 : 0);
  STD_TORCH_CHECK(a.rows >= unstored, "combine_error: ", int(a.rows), " rows but form ",
                  form_text(e.form), measure ? ", a measured row" : "",
                  a.clamp ? ", a clamped row" : "", " need ", unstored);
  e.error = int8_t(a.rows - behind);
  check_per_sample("combine_error", "tolerance", tolerance, ScalarType::Double, {a.samples, 2},
                   xs[0]);
  e.tolerance = static_cast<const double*>(tolerance.const_data_ptr());
  e.partials = nullptr;
  return e;
}

inline int stored_rows(const ErrorArgs& e) { return e.error - (e.rows.clamp ? 1 : 0); }

// The outputs are counted by themselves, as rows 0, 1, ... of a call that has no others.
inline void set_error_outputs(ErrorArgs* e, const std::vector<Tensor>& outs, const Tensor& first) {
  const int stored = stored_rows(*e);
  STD_TORCH_CHECK(int64_t(outs.size()) == stored, "combine_error: ", stored, " rows to store but ",
                  outs.size(), " outs");
  CombineArgs& a = e->rows;
  CombineArgs only = a;
  only.rows = int8_t(stored);
  only.clamp = false;
  set_outputs(&only, outs, first);
  a.wide = only.wide;
  for (int r = 0; r < a.rows; ++r) {
    const int out = r - (a.clamp ? 1 : 0);
    const bool is_stored = out >= 0 && out < stored;
    a.y[r] = is_stored ? only.y[out] : nullptr;
    a.y_type[r] = is_stored ? only.y_type[out] : DType::kFloat32;
  }
}

inline void set_norms(ErrorArgs* e, const Tensor& norms, const Tensor& first) {
  check_per_sample("combine_error", "norms", norms, ScalarType::Double, {e->rows.samples, 2},
                   first);
  e->norms = static_cast<double*>(norms.mutable_data_ptr());
}

// The two forms of `combine_error`, over a backend's `Run(ErrorArgs&, const Tensor& first)`.
template <auto Run>
std::vector<Tensor> combine_error(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                                  OptionalTensor streams, std::vector<double> clamp,
                                  Tensor tolerance, int64_t form, int64_t norm, bool measure) {
  ErrorArgs e = error_args(xs, weights, noise, streams, clamp, tolerance, form, norm, measure);
  std::vector<Tensor> outs;
  for (int r = 0; r < stored_rows(e); ++r)
    outs.push_back(torch::stable::new_empty(xs[0], xs[0].sizes(), promoted(e.rows)));
  set_error_outputs(&e, outs, xs[0]);
  Tensor norms = torch::stable::new_empty(xs[0], tolerance.sizes(), ScalarType::Double);
  set_norms(&e, norms, xs[0]);
  e.rows.status = nullptr;
  Run(e, xs[0]);
  outs.push_back(norms);
  return outs;
}

template <auto Run>
void combine_error_out(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                       OptionalTensor streams, std::vector<double> clamp, Tensor tolerance,
                       int64_t form, int64_t norm, bool measure, std::vector<Tensor> outs,
                       Tensor norms, OptionalTensor status) {
  ErrorArgs e = error_args(xs, weights, noise, streams, clamp, tolerance, form, norm, measure);
  set_error_outputs(&e, outs, xs[0]);
  set_status(&e.rows, status, xs[0]);
  set_norms(&e, norms, xs[0]);
  check_status_streams(e.rows);
  Run(e, xs[0]);
}

}  // namespace diffast
