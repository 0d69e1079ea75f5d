// From tensors to CombineArgs, and the forms of `combine`. Shared by the CPU and the CUDA glue.
// Every `set_...` returns whether what it was given fits; a call that does not fit is refused as a
// whole (core/checks.h), after nothing has been written.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

// The inputs; `rows` is how many rows are made of them.
inline bool set_inputs(CombineArgs* a, const std::vector<Tensor>& xs, First& first, int64_t rows) {
  if (xs.size() > kMaxInputs || rows < 1 || rows > kMaxRows) return false;
  a->inputs = int8_t(xs.size());
  a->rows = int8_t(rows);
  a->samples = first.samples();
  a->elements = first.elements();
  for (size_t k = 0; k < xs.size(); ++k) {
    const ScalarType type = xs[k].scalar_type();
    if (!to_dtype(type, &a->x_type[k]) || !first.is_like(xs[k])) return false;
    a->wide = a->wide || a->x_type[k] == DType::kFloat64;
    const int64_t bytes = dtype_bytes(a->x_type[k]);
    a->x[k] = first.reads(xs[k], a->samples * a->elements, bytes, type, Access::kInPlace);
  }
  return true;
}

// The outputs; with a clamp row 0 may go without one.
inline bool set_outputs(CombineArgs* a, const std::vector<Tensor>& outs, First& first) {
  const int hidden = a->rows - int(outs.size());
  if (hidden != 0 && !(hidden == 1 && a->clamp)) return false;
  for (int r = hidden; r < a->rows; ++r) {
    const Tensor& out = outs[r - hidden];
    const ScalarType type = out.scalar_type();
    if (!to_dtype(type, &a->y_type[r]) || !first.is_like(out)) return false;
    a->wide = a->wide || a->y_type[r] == DType::kFloat64;
    const int64_t bytes = dtype_bytes(a->y_type[r]);
    a->y[r] = first.writes(out, a->samples * a->elements, bytes, type, Access::kInPlace);
  }
  return true;
}

inline bool set_status(CombineArgs* a, const OptionalTensor& status, First& first) {
  if (status.has_value() && first.sizes.size() == 0) return false;
  return first.bind(&a->status, status, {a->samples});
}

// Weights given as host numbers, [rows, inputs (+ 1 with a clamp)] and [rows, noises] flattened.
inline bool set_host_weights(CombineArgs* a, const std::vector<double>& weights,
                             const std::vector<double>& noise) {
  if (a->clamp && weights[a->inputs] != 0) return false;  // row 0 as a column of itself
  if (noise.size() % a->rows != 0 || int(noise.size()) > a->rows * kMaxNoises) return false;
  a->noises = int8_t(noise.size() / a->rows);
  std::copy(weights.begin(), weights.end(), a->weight);
  std::copy(noise.begin(), noise.end(), a->noise);
  const auto finite = [](double weight) { return std::isfinite(weight); };
  return std::all_of(weights.begin(), weights.end(), finite) &&
         std::all_of(noise.begin(), noise.end(), finite);
}

// A call with host weights, but for its outputs. `first` is xs[0].
inline bool set_host(CombineArgs* a, const std::vector<Tensor>& xs, First& first,
                     const std::vector<double>& weights, const std::vector<double>& noise,
                     int64_t seed, int64_t stage, const OptionalTensor& ids,
                     const std::vector<double>& clamp) {
  if (!set_limits(clamp, &a->clamp, &a->low, &a->high)) return false;
  const size_t columns = xs.size() + (a->clamp ? 1 : 0);
  if (weights.size() % columns != 0) return false;
  if (!set_inputs(a, xs, first, int64_t(weights.size() / columns))) return false;
  if (!set_host_weights(a, weights, noise) || !is_word(stage)) return false;
  if (a->noises > 0 && (first.sizes.size() == 0 || a->elements > kDrawnLimit)) return false;
  a->seed = uint64_t(seed);
  a->word = uint32_t(stage);
  return first.bind(&a->ids, ids, {a->samples});
}

// A call with a table of weights on the device, [samples, rows, inputs (+ 1)], but for its outputs.
// The table's values are not looked at, which would cost a host synchronisation: `status` tells of
// a bad one.
inline bool set_table(CombineArgs* a, const std::vector<Tensor>& xs, First& first,
                      const Tensor& weights, const OptionalTensor& noise,
                      const OptionalTensor& streams, const std::vector<double>& clamp) {
  if (!set_limits(clamp, &a->clamp, &a->low, &a->high)) return false;
  if (weights.dim() != 3 || first.sizes.size() == 0) return false;
  if (!set_inputs(a, xs, first, weights.size(1))) return false;
  const int64_t columns = a->inputs + (a->clamp ? 1 : 0);
  if (!first.bind(&a->weight_table, weights, {a->samples, a->rows, columns})) return false;
  if (noise.has_value()) {
    const int64_t noises = noise->dim() == 3 ? noise->size(2) : 0;
    if (noises < 1 || noises > kMaxNoises || !streams.has_value()) return false;
    if (a->elements > kDrawnLimit) return false;
    if (!first.bind(&a->noise_table, noise, {a->samples, a->rows, noises})) return false;
    a->noises = int8_t(noises);
  }
  return first.bind(&a->streams, streams, {a->samples, 3});
}

// The type that torch would promote the inputs to.
inline ScalarType promoted(const CombineArgs& a) {
  bool half = true, bfloat = true;
  for (int k = 0; k < a.inputs; ++k) {
    half = half && a.x_type[k] == DType::kFloat16;
    bfloat = bfloat && a.x_type[k] == DType::kBFloat16;
  }
  if (a.wide) return ScalarType::Double;
  return half ? ScalarType::Half : bfloat ? ScalarType::BFloat16 : ScalarType::Float;
}

inline std::vector<Tensor> new_outputs(const CombineArgs& a, const First& first, int rows) {
  std::vector<Tensor> outs;
  for (int r = 0; r < rows; ++r)
    outs.push_back(torch::stable::new_empty(first.tensor, first.sizes, promoted(a)));
  return outs;
}

// Runs a call with new outputs, and returns them.
template <auto Run>
std::vector<Tensor> run_into_new(CombineArgs* a, First& first) {
  std::vector<Tensor> outs = new_outputs(*a, first, a->rows);
  need(set_outputs(a, outs, first), "combine");
  Run(*a, first.tensor);
  return outs;
}

// The four forms of `combine`, over a backend's `Run(const CombineArgs&, const Tensor& first)`.
template <auto Run>
std::vector<Tensor> combine(std::vector<Tensor> xs, std::vector<double> weights,
                            std::vector<double> noise, int64_t seed, int64_t stage,
                            OptionalTensor ids, std::vector<double> clamp) {
  First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_host(&a, xs, first, weights, noise, seed, stage, ids, clamp), "combine");
  return run_into_new<Run>(&a, first);
}

template <auto Run>
void combine_out(std::vector<Tensor> xs, std::vector<double> weights, std::vector<Tensor> outs,
                 OptionalTensor status, int64_t stage, std::vector<double> noise, int64_t seed,
                 OptionalTensor ids, std::vector<double> clamp) {
  First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_host(&a, xs, first, weights, noise, seed, stage, ids, clamp) &&
           set_outputs(&a, outs, first) && set_status(&a, status, first) && first.is_apart(),
       "combine");
  Run(a, xs[0]);
}

template <auto Run>
std::vector<Tensor> combine_table(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                                  OptionalTensor streams, std::vector<double> clamp) {
  First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_table(&a, xs, first, weights, noise, streams, clamp), "combine");
  return run_into_new<Run>(&a, first);
}

template <auto Run>
void combine_table_out(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                       OptionalTensor streams, std::vector<double> clamp, std::vector<Tensor> outs,
                       OptionalTensor status) {
  First first = first_of(xs, "combine");
  CombineArgs a;
  // A status needs streams, which hold the stage to report.
  need(set_table(&a, xs, first, weights, noise, streams, clamp) && set_outputs(&a, outs, first) &&
           set_status(&a, status, first) && (!a.status || a.streams) && first.is_apart(),
       "combine");
  Run(a, xs[0]);
}

}  // namespace diffast
