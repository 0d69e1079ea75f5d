// From tensors to SweepArgs, and `sweep`. Shared by the CPU and the CUDA glue.
#pragma once

#include "../../core/checks.h"
#include "args.h"

namespace diffast {

inline bool set_network_outputs(SweepArgs* a, const std::vector<Tensor>& outputs, const First& x) {
  if (outputs.size() > kMaxOutputs) return false;
  a->outputs = int8_t(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!to_dtype(outputs[i].scalar_type(), &a->output_type[i]) || !x.is_like(outputs[i]))
      return false;
    if (!a->wide && a->output_type[i] == DType::kFloat64) return false;
    a->output[i] = outputs[i].const_data_ptr();
  }
  return true;
}

// States [states, planes, ...] with the elements of x.
inline bool set_states(SweepArgs* a, const Tensor& states, const First& x) {
  const auto sizes = states.sizes();
  if (sizes.size() != x.sizes.size() + 1 || !x.is_beside(states)) return false;
  if (states.scalar_type() != x.tensor.scalar_type()) return false;
  for (size_t d = 1; d < x.sizes.size(); ++d)
    if (sizes[d + 1] != x.sizes[d]) return false;
  const int64_t entries = sizes[1] - kPlanesBesideEntries;
  if (entries < 0 || entries > kMaxEntries) return false;
  a->states = states.mutable_data_ptr();
  a->state_count = sizes[0];
  a->entries = int8_t(entries);
  return true;
}

// Whether points and states overlap nothing else. Points may be x itself: every row is read before
// it is written.
inline bool outputs_are_apart(const SweepArgs& a) {
  const int64_t numel = a.rows * a.elements, bytes = a.wide ? 8 : 4;
  const Span x(a.x, numel * bytes), points(a.points, numel * bytes);
  const Span states(a.states, a.state_count * sweep_planes(a) * a.elements * bytes);
  if (a.points != a.x && points.overlaps(x)) return false;
  if (points.overlaps(states) || states.overlaps(x)) return false;
  for (int i = 0; i < a.outputs; ++i) {
    const Span output(a.output[i], numel * dtype_bytes(a.output_type[i]));
    if (points.overlaps(output) || states.overlaps(output)) return false;
  }
  return true;
}

// Whether no index leads out of the tensors. Looked at on the CPU only: elsewhere the host would
// have to wait for the device.
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
           int64_t seed, int64_t noises, bool parts, std::vector<double> clamp, int64_t chunk,
           Tensor points, Tensor states, OptionalTensor norms) {
  SweepArgs a = {};
  const First first(x);
  const ScalarType type = x.scalar_type(), wide = ScalarType::Double, index = ScalarType::Int;
  need(type == ScalarType::Float || type == wide, "sweep");
  need(first.sizes.size() > 0 && first.is_beside(x), "sweep");
  need(noises >= 0 && noises <= kMaxNoises && chunk >= 0, "sweep");
  need(ids.dim() == 1 && first.has_beside(ids, ScalarType::Long, {ids.size(0)}), "sweep");
  a.wide = type == wide;
  a.noises = int8_t(noises);
  a.parts = parts;
  a.chunk = chunk;
  a.seed = uint64_t(seed);
  a.rows = first.sizes[0];
  a.elements = 1;
  for (size_t d = 1; d < first.sizes.size(); ++d) a.elements *= first.sizes[d];
  a.stages = weights.dim() > 0 ? weights.size(0) : 0;
  a.job_count = jobs.dim() > 0 ? jobs.size(0) : 0;
  a.length = walk.dim() == 2 ? walk.size(1) : 0;
  a.samples = ids.size(0);
  need(set_network_outputs(&a, outputs, first) && set_states(&a, states, first), "sweep");
  need(points.scalar_type() == type && first.is_like(points), "sweep");
  need(set_limits(clamp, &a.clamp, &a.low, &a.high), "sweep");
  need(chunk == 0 || !(a.entries || parts || a.clamp), "sweep");
  const int64_t made = sweep_made(a);
  need(first.has_beside(weights, wide, {a.stages, 1 + made, sweep_columns(a)}) &&
           first.has_beside(changes, wide, {a.stages, 1 + made}) &&
           first.has_beside(tails, wide, {a.stages, made, sweep_tail_columns(a)}) &&
           first.has_beside(line, wide, {a.stages, 4}) &&
           (!slopes.has_value() || first.has_beside(*slopes, wide, {a.rows})) &&
           first.has_beside(jobs, index, {a.job_count, 8}) &&
           first.has_beside(walk, index, {a.job_count, a.length}) &&
           (!norms.has_value() || first.has_beside(*norms, wide, {a.job_count, a.length + 1})),
       "sweep");
  a.x = x.const_data_ptr();
  a.slopes = slopes.has_value() ? data_of<double>(*slopes) : nullptr;
  a.weights = data_of<double>(weights);
  a.changes = data_of<double>(changes);
  a.tails = data_of<double>(tails);
  a.line = data_of<SweepLine>(line);
  a.jobs = data_of<SweepJob>(jobs);
  a.walk = data_of<int32_t>(walk);
  a.ids = data_of<int64_t>(ids);
  a.points = points.mutable_data_ptr();
  a.norms = norms.has_value() ? mutable_data_of<double>(*norms) : nullptr;
  need(outputs_are_apart(a) && (!first.cpu || jobs_are_inside(a)), "sweep");
  Run(a, x);
}

}  // namespace diffast
