// From tensors to SweepArgs, with every check that `sweep` makes; the same words are in
// ops/checks_sweep.py, and a test compares the two.
#pragma once

#include "../combine/checks.h"
#include "args.h"

namespace diffast {

inline void sweep_check_place(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(same_device(t, x), "sweep: ", name, " is on ", device_text(t), " but x is on ",
                  device_text(x));
  STD_TORCH_CHECK(t.is_contiguous(), "sweep: ", name, " of shape ", shape_text(t),
                  " is not contiguous but the kernel walks it in row-major order");
}

inline void sweep_check_type(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "sweep: ", name, " has dtype ", dtype_text(t),
                  " but x has ", dtype_text(x));
}

inline void sweep_check_like(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(First(x).has_shape_of(t), "sweep: ", name, " has shape ", shape_text(t),
                  " but x has ", shape_text(x));
  sweep_check_place(name, t, x);
}

inline void sweep_check_table(const char* name, const Tensor& t, ScalarType type,
                              const std::vector<int64_t>& shape, const Tensor& x) {
  bool fits = t.scalar_type() == type && t.dim() == int64_t(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(d) == shape[d];
  if (!fits) {
    std::string wanted = type == ScalarType::Int ? "int32 [" : "float64 [";
    for (size_t d = 0; d < shape.size(); ++d) wanted += (d ? ", " : "") + std::to_string(shape[d]);
    STD_TORCH_CHECK(false, "sweep: ", name, " is ", dtype_text(t), " ", shape_text(t), " but ",
                    wanted, "] is needed");
  }
  sweep_check_place(name, t, x);
}

inline void sweep_set_outputs(SweepArgs* a, const std::vector<Tensor>& outputs, const Tensor& x) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& t = outputs[i];
    const std::string name = "outputs[" + std::to_string(i) + "]";
    STD_TORCH_CHECK(to_dtype(t.scalar_type(), &a->output_type[i]) &&
                        (a->wide || a->output_type[i] != DType::kFloat64),
                    "sweep: ", name, " has dtype ", dtype_text(t), " but x has ", dtype_text(x));
    sweep_check_like(name.c_str(), t, x);
    a->output[i] = t.const_data_ptr();
  }
}

inline void sweep_set_states(SweepArgs* a, const Tensor& states, const Tensor& x) {
  bool fits = states.dim() == x.dim() + 1 && states.size(1) >= kPlanesBesideEntries &&
              states.size(1) <= kPlanesBesideEntries + kMaxEntries;
  for (int64_t d = 1; fits && d < x.dim(); ++d) fits = states.size(d + 1) == x.size(d);
  STD_TORCH_CHECK(fits, "sweep: states has shape ", shape_text(states), " but [states, ",
                  kPlanesBesideEntries, " to ", kPlanesBesideEntries + kMaxEntries,
                  ", ...] with the elements of x, ", shape_text(x), ", is needed");
  sweep_check_type("states", states, x);
  sweep_check_place("states", states, x);
  a->states = states.mutable_data_ptr();
  a->state_count = states.size(0);
  a->entries = int8_t(states.size(1) - kPlanesBesideEntries);
}

inline void sweep_set_clamp(SweepArgs* a, const std::vector<double>& clamp) {
  if (!a->clamp) return;
  STD_TORCH_CHECK(clamp.size() == 2, "sweep: clamp has ", clamp.size(),
                  " numbers but (low, high) is needed");
  STD_TORCH_CHECK(clamp[0] <= clamp[1], "sweep: clamp low ", unsigned_nan(clamp[0]), " but high ",
                  unsigned_nan(clamp[1]));
  a->low = clamp[0];
  a->high = clamp[1];
}

// `points` may be x itself: every row is read before it is written.
inline void sweep_check_overlap(const SweepArgs& a) {
  const int64_t numel = a.rows * a.elements, bytes = a.wide ? 8 : 4;
  struct Span {
    const char *begin, *end;
    Span(const void* data, int64_t size)
        : begin(static_cast<const char*>(data)), end(begin + size) {}
    bool overlaps(const Span& other) const { return other.begin < end && begin < other.end; }
  };
  const Span x(a.x, numel * bytes), points(a.points, numel * bytes);
  const Span states(a.states, a.state_count * sweep_planes(a) * a.elements * bytes);
  STD_TORCH_CHECK(a.points == a.x || !points.overlaps(x),
                  "sweep: points overlaps x without being the same tensor");
  const auto output = [&](int i) {
    return Span(a.output[i], numel * dtype_bytes(a.output_type[i]));
  };
  for (int i = 0; i < a.outputs; ++i)
    STD_TORCH_CHECK(!points.overlaps(output(i)), "sweep: points overlaps outputs[", i, "]");
  STD_TORCH_CHECK(!points.overlaps(states), "sweep: points overlaps states");
  for (int i = 0; i < a.outputs; ++i)
    STD_TORCH_CHECK(!states.overlaps(output(i)), "sweep: states overlaps outputs[", i, "]");
  STD_TORCH_CHECK(!states.overlaps(x), "sweep: states overlaps x");
}

inline void sweep_check_range(int64_t job, const char* name, int64_t value, int64_t low,
                              int64_t high) {
  STD_TORCH_CHECK(low <= value && value < high, "sweep: job ", job, " has ", name, " ", value,
                  " but ", low, " to ", high - 1, " are possible");
}

// Refuses indices that lead out of the tensors; only where looking at them is free.
inline void sweep_check_jobs(const SweepArgs& a) {
  for (int64_t j = 0; j < a.job_count; ++j) {
    const SweepJob& job = a.jobs[j];
    const int64_t count = int64_t(job.real) + job.tail;
    sweep_check_range(j, "sample", job.sample, 0, a.samples);
    sweep_check_range(j, "from", job.from, -1, a.rows);
    sweep_check_range(j, "state_in", job.state_in, job.from >= 0 ? -1 : 0, a.state_count);
    sweep_check_range(j, "state_out", job.state_out, -1, a.state_count);
    sweep_check_range(j, "real", job.real, 0, a.length + 1);
    sweep_check_range(j, "tail", job.tail, 0, a.length + 1 - job.real);
    sweep_check_range(j, "first", job.first, 0, a.stages + 1 - count);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t q = a.walk[j * a.length + k];
      STD_TORCH_CHECK(0 <= q && q < a.rows, "sweep: walk[", j, ", ", k, "] is row ", q,
                      " but x has ", a.rows, " rows");
    }
  }
}

// `sweep`, over a backend's `Run(const SweepArgs&, const Tensor& x)`.
template <auto Run>
void sweep(Tensor x, std::vector<Tensor> outputs, OptionalTensor slopes, Tensor weights,
           Tensor changes, Tensor tails, Tensor line, Tensor jobs, Tensor walk, Tensor ids,
           int64_t seed, int64_t noises, bool parts, std::vector<double> clamp, int64_t chunk,
           Tensor points, Tensor states, OptionalTensor norms) {
  SweepArgs a = {};
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "sweep: x has dtype ",
                  dtype_text(x), " but float32 or float64 is needed");
  STD_TORCH_CHECK(x.dim() > 0, "sweep: x has no dimension of rows but [rows, ...] is needed");
  sweep_check_place("x", x, x);
  STD_TORCH_CHECK(outputs.size() <= kMaxOutputs, "sweep: ", outputs.size(), " outputs but at most ",
                  kMaxOutputs, " are supported");
  STD_TORCH_CHECK(noises >= 0 && noises <= kMaxNoises, "sweep: ", noises, " noises but at most ",
                  kMaxNoises, " are supported");
  a.wide = type == ScalarType::Double;
  a.outputs = int8_t(outputs.size());
  a.noises = int8_t(noises);
  a.parts = parts;
  a.clamp = !clamp.empty();
  a.chunk = chunk;
  a.seed = uint64_t(seed);
  a.rows = x.size(0);
  a.elements = 1;
  for (int64_t d = 1; d < x.dim(); ++d) a.elements *= x.size(d);
  sweep_set_outputs(&a, outputs, x);
  sweep_check_type("points", points, x);
  sweep_check_like("points", points, x);
  sweep_set_states(&a, states, x);
  a.stages = weights.dim() > 0 ? weights.size(0) : 0;
  a.job_count = jobs.dim() > 0 ? jobs.size(0) : 0;
  a.length = walk.dim() == 2 ? walk.size(1) : 0;
  const int64_t made = sweep_made(a);
  const ScalarType wide = ScalarType::Double, index = ScalarType::Int;
  sweep_check_table("weights", weights, wide, {a.stages, 1 + made, sweep_columns(a)}, x);
  sweep_check_table("changes", changes, wide, {a.stages, 1 + made}, x);
  sweep_check_table("tails", tails, wide, {a.stages, made, sweep_tail_columns(a)}, x);
  sweep_check_table("line", line, wide, {a.stages, 4}, x);
  if (slopes.has_value()) sweep_check_table("slopes", *slopes, wide, {a.rows}, x);
  sweep_check_table("jobs", jobs, index, {a.job_count, 8}, x);
  sweep_check_table("walk", walk, index, {a.job_count, a.length}, x);
  if (norms.has_value()) sweep_check_table("norms", *norms, wide, {a.job_count, a.length + 1}, x);
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long && ids.dim() == 1, "sweep: ids is ",
                  dtype_text(ids), " ", shape_text(ids), " but int64 [samples] is needed");
  sweep_check_place("ids", ids, x);
  sweep_set_clamp(&a, clamp);
  STD_TORCH_CHECK(chunk >= 0, "sweep: chunk ", chunk, " but 0 (one walk) or more is needed");
  STD_TORCH_CHECK(chunk == 0 || !(a.entries || parts || a.clamp), "sweep: chunk ", chunk,
                  " but only walks without entries, parts and a clamp go in chunks");
  a.samples = ids.size(0);
  a.x = x.const_data_ptr();
  a.slopes = slopes.has_value() ? static_cast<const double*>(slopes->const_data_ptr()) : nullptr;
  a.weights = static_cast<const double*>(weights.const_data_ptr());
  a.changes = static_cast<const double*>(changes.const_data_ptr());
  a.tails = static_cast<const double*>(tails.const_data_ptr());
  a.line = static_cast<const SweepLine*>(line.const_data_ptr());
  a.jobs = static_cast<const SweepJob*>(jobs.const_data_ptr());
  a.walk = static_cast<const int32_t*>(walk.const_data_ptr());
  a.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  a.points = points.mutable_data_ptr();
  a.norms = norms.has_value() ? static_cast<double*>(norms->mutable_data_ptr()) : nullptr;
  sweep_check_overlap(a);
  if (x.is_cpu()) sweep_check_jobs(a);
  Run(a, x);
}

}  // namespace diffast
