// From tensors to SweepArgs, and `sweep`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

template <>
constexpr ScalarType kScalar<SweepJob> = ScalarType::Int;
template <>
constexpr ScalarType kScalar<SweepLine> = ScalarType::Double;

inline bool set_network_outputs(SweepArgs* a, const std::vector<Tensor>& outputs, First& x) {
  if (outputs.size() > kMaxOutputs) return false;
  a->outputs = int8_t(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const ScalarType type = outputs[i].scalar_type();
    if (!to_dtype(type, &a->output_type[i]) || !x.is_like(outputs[i])) return false;
    if (!a->wide && a->output_type[i] == DType::kFloat64) return false;
    const int64_t bytes = dtype_bytes(a->output_type[i]);
    a->output[i] = x.reads(outputs[i], a->rows * a->elements, bytes, type);
  }
  return true;
}

// States [states, planes, ...] with the elements of x.
inline bool set_states(SweepArgs* a, const Tensor& states, First& x) {
  const auto sizes = states.sizes();
  if (sizes.size() != x.sizes.size() + 1 || !x.is_beside(states)) return false;
  if (states.scalar_type() != x.tensor.scalar_type()) return false;
  for (size_t d = 1; d < x.sizes.size(); ++d)
    if (sizes[d + 1] != x.sizes[d]) return false;
  const int64_t entries = sizes[1] - kPlanesBesideEntries;
  if (entries < 0 || entries > kMaxEntries) return false;
  a->state_count = sizes[0];
  const int64_t count = sizes[0] * sizes[1] * a->elements;
  a->states = x.writes(states, count, a->wide ? 8 : 4, states.scalar_type());
  a->entries = int8_t(entries);
  return true;
}

// Whether no index leads out of the tensors; jobs and walk are in host memory. On a GPU that is
// asked with DIFFAST_SYNC=1 only: the host has to wait for the device.
inline bool jobs_are_inside(const SweepArgs& a) {
  const auto in = [](int64_t value, int64_t low, int64_t high) {
    return low <= value && value < high;
  };
  for (int64_t j = 0; j < a.job_count; ++j) {
    const SweepJob& job = a.jobs[j];
    const int64_t count = int64_t(job.real) + job.tail;
    if (!in(job.sample, 0, a.samples) || !in(job.from, -1, a.rows) ||
        !in(job.state_in, job.from >= 0 ? -1 : 0, a.state_count) ||
        !in(job.state_out, -1, a.state_count) || !in(job.real, 0, a.length + 1) ||
        !in(job.tail, 0, a.length + 1 - job.real) || !in(job.first, 0, a.stages + 1 - count))
      return false;
    for (int64_t k = 0; k < count; ++k)
      if (!in(a.walk[j * a.length + k], 0, a.rows)) return false;
  }
  return true;
}

// `sweep`, over a backend's `Run(const SweepArgs&, const Tensor& x)`.
template <auto Run>
void sweep(Tensor x, std::vector<Tensor> outputs, OptionalTensor slopes, Tensor weights,
           Tensor changes, Tensor tails, Tensor line, Tensor jobs, Tensor walk, Tensor ids,
           int64_t seed, int64_t noises, bool parts, std::vector<double> clamp, Tensor points,
           Tensor states, OptionalTensor norms) {
  SweepArgs a = {};
  First first(x);
  const ScalarType type = x.scalar_type();
  a.wide = type == ScalarType::Double;
  need(a.wide || type == ScalarType::Float, "sweep");
  need(first.sizes.size() > 0 && first.is_beside(x), "sweep");
  need(noises >= 0 && noises <= kMaxNoises, "sweep");
  need(ids.dim() == 1 && first.bind(&a.ids, ids, {ids.size(0)}), "sweep");
  a.noises = int8_t(noises);
  a.parts = parts;
  a.seed = uint64_t(seed);
  a.rows = first.sizes[0];
  a.elements = 1;
  for (size_t d = 1; d < first.sizes.size(); ++d) a.elements *= first.sizes[d];
  need(noises == 0 || a.elements <= kDrawnLimit, "sweep");
  a.stages = weights.dim() > 0 ? weights.size(0) : 0;
  a.job_count = jobs.dim() > 0 ? jobs.size(0) : 0;
  a.length = walk.dim() == 2 ? walk.size(1) : 0;
  a.samples = ids.size(0);
  need(set_network_outputs(&a, outputs, first) && set_states(&a, states, first), "sweep");
  need(points.scalar_type() == type && first.is_like(points), "sweep");
  need(set_limits(clamp, &a.clamp, &a.low, &a.high), "sweep");
  const int64_t made = sweep_made(a);
  need(first.bind(&a.weights, weights, {a.stages, 1 + made, sweep_columns(a)}) &&
           first.bind(&a.changes, changes, {a.stages, 1 + made}) &&
           first.bind(&a.tails, tails, {a.stages, made, sweep_tail_columns(a)}) &&
           first.bind(&a.line, line, {a.stages, 4}) && first.bind(&a.slopes, slopes, {a.rows}) &&
           first.bind(&a.jobs, jobs, {a.job_count, 8}) &&
           first.bind(&a.walk, walk, {a.job_count, a.length}) &&
           first.bind(&a.norms, norms, {a.job_count, a.length + 1}),
       "sweep");
  // Points may be x itself: every row is read before it is written.
  const int64_t count = a.rows * a.elements, bytes = a.wide ? 8 : 4;
  a.x = first.reads(x, count, bytes, type, Access::kInPlace);
  a.points = first.writes(points, count, bytes, type, Access::kInPlace);
  need(first.is_apart() && (!first.cpu || jobs_are_inside(a)), "sweep");
  Run(a, x);
}

}  // namespace diffast
