// From tensors to CombineArgs, and the forms of `combine`. Shared by the CPU and the CUDA glue.
// Every `set_...` returns whether what it was given fits; a call that does not fit is refused as a
// whole (core/checks.h), after nothing has been written.
#pragma once

#include <cmath>

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

// The inputs; `rows` is how many rows are made of them.
inline bool set_inputs(CombineArgs* a, const std::vector<Tensor>& xs, const First& first,
                       int64_t rows) {
  if (xs.size() > kMaxInputs || rows < 1 || rows > kMaxRows) return false;
  a->inputs = int8_t(xs.size());
  a->rows = int8_t(rows);
  a->wide = false;
  a->samples = first.samples();
  a->elements = first.elements();
  for (size_t k = 0; k < xs.size(); ++k) {
    if (!to_dtype(xs[k].scalar_type(), &a->x_type[k]) || !first.is_like(xs[k])) return false;
    a->wide = a->wide || a->x_type[k] == DType::kFloat64;
    a->x[k] = xs[k].const_data_ptr();
  }
  return true;
}

// Whether each output is an input itself (every element is read before it is written) or overlaps
// neither an input nor another output.
inline bool outputs_are_apart(const CombineArgs& a) {
  const int64_t numel = a.samples * a.elements;
  for (int r = 0; r < a.rows; ++r) {
    if (a.y[r] == nullptr) continue;
    const Span out(a.y[r], numel * dtype_bytes(a.y_type[r]));
    for (int k = 0; k < a.inputs; ++k) {
      const bool same = a.x[k] == a.y[r] && a.x_type[k] == a.y_type[r];
      if (!same && out.overlaps(Span(a.x[k], numel * dtype_bytes(a.x_type[k])))) return false;
    }
    for (int s = 0; s < r; ++s)
      if (a.y[s] && out.overlaps(Span(a.y[s], numel * dtype_bytes(a.y_type[s])))) return false;
  }
  return true;
}

// The outputs; with a clamp row 0 may go without one.
inline bool set_outputs(CombineArgs* a, const std::vector<Tensor>& outs, const First& first) {
  const int hidden = a->rows - int(outs.size());
  if (hidden != 0 && !(hidden == 1 && a->clamp)) return false;
  a->y[0] = nullptr;
  a->y_type[0] = DType::kFloat32;
  for (int r = hidden; r < a->rows; ++r) {
    const Tensor& out = outs[r - hidden];
    if (!to_dtype(out.scalar_type(), &a->y_type[r]) || !first.is_like(out)) return false;
    a->wide = a->wide || a->y_type[r] == DType::kFloat64;
    a->y[r] = out.mutable_data_ptr();
  }
  return outputs_are_apart(*a);
}

inline bool set_status(CombineArgs* a, const OptionalTensor& status, const First& first) {
  a->status = nullptr;
  if (!status.has_value()) return true;
  if (first.sizes.size() == 0) return false;
  if (!first.has_beside(*status, ScalarType::Long, {a->samples})) return false;
  a->status = mutable_data_of<int64_t>(*status);
  return true;
}

// Weights given as host numbers, [rows, inputs (+ 1 with a clamp)] and [rows, noises] flattened.
inline bool set_host_weights(CombineArgs* a, const std::vector<double>& weights,
                             const std::vector<double>& noise) {
  bool finite = true;
  for (size_t i = 0; i < weights.size(); ++i) {
    finite = finite && std::isfinite(weights[i]);
    a->weight[i] = weights[i];
  }
  if (a->clamp && weights[a->inputs] != 0) return false;  // row 0 as a column of itself
  if (noise.size() % a->rows != 0 || int(noise.size()) > a->rows * kMaxNoises) return false;
  a->noises = int8_t(noise.size() / a->rows);
  for (size_t i = 0; i < noise.size(); ++i) {
    finite = finite && std::isfinite(noise[i]);
    a->noise[i] = noise[i];
  }
  return finite;
}

// A call with host weights, but for its outputs. `first` is xs[0].
inline bool set_host(CombineArgs* a, const std::vector<Tensor>& xs, const First& first,
                     const std::vector<double>& weights, const std::vector<double>& noise,
                     int64_t seed, int64_t stage, const OptionalTensor& ids,
                     const std::vector<double>& clamp) {
  if (!set_limits(clamp, &a->clamp, &a->low, &a->high)) return false;
  const size_t columns = xs.size() + (a->clamp ? 1 : 0);
  if (weights.size() % columns != 0) return false;
  if (!set_inputs(a, xs, first, int64_t(weights.size() / columns))) return false;
  if (!set_host_weights(a, weights, noise) || !is_word(stage)) return false;
  if (a->noises > 0 && first.sizes.size() == 0) return false;
  if (ids.has_value() && !first.has_beside(*ids, ScalarType::Long, {a->samples})) return false;
  a->ids = ids.has_value() ? data_of<int64_t>(*ids) : nullptr;
  a->weight_table = nullptr;
  a->noise_table = nullptr;
  a->streams = nullptr;
  a->seed = uint64_t(seed);
  a->word = uint32_t(stage);
  return true;
}

// A call with a table of weights on the device, [samples, rows, inputs (+ 1)], but for its outputs.
// The table's values are not looked at, which would cost a host synchronisation: `status` tells of
// a bad one.
inline bool set_table(CombineArgs* a, const std::vector<Tensor>& xs, const First& first,
                      const Tensor& weights, const OptionalTensor& noise,
                      const OptionalTensor& streams, const std::vector<double>& clamp) {
  if (!set_limits(clamp, &a->clamp, &a->low, &a->high)) return false;
  if (weights.dim() != 3 || first.sizes.size() == 0) return false;
  if (!set_inputs(a, xs, first, weights.size(1))) return false;
  const int64_t columns = a->inputs + (a->clamp ? 1 : 0);
  const ScalarType wide = ScalarType::Double;
  if (!first.has_beside(weights, wide, {a->samples, a->rows, columns})) return false;
  a->weight_table = data_of<double>(weights);
  a->noise_table = nullptr;
  a->noises = 0;
  a->streams = nullptr;
  a->ids = nullptr;
  a->seed = 0;
  a->word = 0;
  if (noise.has_value()) {
    const int64_t noises = noise->dim() == 3 ? noise->size(2) : 0;
    if (noises < 1 || noises > kMaxNoises || !streams.has_value()) return false;
    if (!first.has_beside(*noise, wide, {a->samples, a->rows, noises})) return false;
    a->noises = int8_t(noises);
    a->noise_table = data_of<double>(*noise);
  }
  if (!streams.has_value()) return true;
  if (!first.has_beside(*streams, ScalarType::Long, {a->samples, 3})) return false;
  a->streams = data_of<int64_t>(*streams);
  return true;
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

// The four forms of `combine`, over a backend's `Run(const CombineArgs&, const Tensor& first)`.
template <auto Run>
std::vector<Tensor> combine(std::vector<Tensor> xs, std::vector<double> weights,
                            std::vector<double> noise, int64_t seed, int64_t stage,
                            OptionalTensor ids, std::vector<double> clamp) {
  const First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_host(&a, xs, first, weights, noise, seed, stage, ids, clamp), "combine");
  std::vector<Tensor> outs = new_outputs(a, first, a.rows);
  need(set_outputs(&a, outs, first), "combine");
  a.status = nullptr;
  Run(a, xs[0]);
  return outs;
}

template <auto Run>
void combine_out(std::vector<Tensor> xs, std::vector<double> weights, std::vector<Tensor> outs,
                 OptionalTensor status, int64_t stage, std::vector<double> noise, int64_t seed,
                 OptionalTensor ids, std::vector<double> clamp) {
  const First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_host(&a, xs, first, weights, noise, seed, stage, ids, clamp) &&
           set_outputs(&a, outs, first) && set_status(&a, status, first),
       "combine");
  Run(a, xs[0]);
}

template <auto Run>
std::vector<Tensor> combine_table(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                                  OptionalTensor streams, std::vector<double> clamp) {
  const First first = first_of(xs, "combine");
  CombineArgs a;
  need(set_table(&a, xs, first, weights, noise, streams, clamp), "combine");
  std::vector<Tensor> outs = new_outputs(a, first, a.rows);
  need(set_outputs(&a, outs, first), "combine");
  a.status = nullptr;
  Run(a, xs[0]);
  return outs;
}

template <auto Run>
void combine_table_out(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                       OptionalTensor streams, std::vector<double> clamp, std::vector<Tensor> outs,
                       OptionalTensor status) {
  const First first = first_of(xs, "combine");
  CombineArgs a;
  // A status needs streams, which hold the stage to report.
  need(set_table(&a, xs, first, weights, noise, streams, clamp) && set_outputs(&a, outs, first) &&
           set_status(&a, status, first) && (!a.status || a.streams),
       "combine");
  Run(a, xs[0]);
}

}  // namespace diffast
