// From tensors to CombineArgs / NormalArgs, with every check an op makes. Shared by the CPU and the
// CUDA glue, so both refuse the same things in the same words; ops/checks.py says them once more
// for the reference and Triton, and a test compares the two.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../../core/normal.h"
#include "../normal/args.h"
#include "args.h"

namespace diffast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

inline std::string dtype_text(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "an unnamed dtype";
  }
}

inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "device:") + std::to_string(t.get_device_index());
}

// A NaN has a sign that printing would show on one backend and not on another.
inline double unsigned_nan(double value) { return std::isnan(value) ? std::fabs(value) : value; }

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() ? b.is_cpu() : b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool to_dtype(ScalarType type, DType* out) {
  switch (type) {
    case ScalarType::Float:
      *out = DType::kFloat32;
      return true;
    case ScalarType::Half:
      *out = DType::kFloat16;
      return true;
    case ScalarType::BFloat16:
      *out = DType::kBFloat16;
      return true;
    case ScalarType::Double:
      *out = DType::kFloat64;
      return true;
    default:
      return false;
  }
}

// What the other tensors are compared with, asked for once: each question is a call through the
// stable ABI.
struct First {
  const Tensor& tensor;
  torch::headeronly::IntHeaderOnlyArrayRef sizes;
  bool cpu;

  explicit First(const Tensor& t) : tensor(t), sizes(t.sizes()), cpu(t.is_cpu()) {}

  bool has_shape_of(const Tensor& t) const {
    const auto other = t.sizes();
    if (other.size() != sizes.size()) return false;
    for (size_t d = 0; d < sizes.size(); ++d)
      if (other[d] != sizes[d]) return false;
    return true;
  }
  bool is_on_device_of(const Tensor& t) const { return cpu ? t.is_cpu() : same_device(tensor, t); }
};

// The checks that tensor `index` of `list`, which has the state's shape, passes.
inline DType check_state(const char* list, size_t index, const Tensor& t, const First& first) {
  DType type;
  STD_TORCH_CHECK(to_dtype(t.scalar_type(), &type), "combine: ", list, "[", index, "] has dtype ",
                  dtype_text(t), " but only float32, float16, bfloat16 and float64 are supported");
  STD_TORCH_CHECK(first.has_shape_of(t), "combine: ", list, "[", index, "] has shape ",
                  shape_text(t), " but xs[0] has shape ", shape_text(first.tensor));
  STD_TORCH_CHECK(first.is_on_device_of(t), "combine: ", list, "[", index, "] is on ",
                  device_text(t), " but xs[0] is on ", device_text(first.tensor));
  STD_TORCH_CHECK(t.is_contiguous(), "combine: ", list, "[", index, "] of shape ", shape_text(t),
                  " is not contiguous but the kernel reads it in row-major order");
  return type;
}

// The checks on the small per-sample tensors (ids, streams, status, tables).
inline void check_per_sample(const char* op, const char* name, const Tensor& t, ScalarType type,
                             const std::vector<int64_t>& shape, const Tensor& first) {
  bool fits = t.scalar_type() == type && t.dim() == int64_t(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(d) == shape[d];
  if (!fits) {
    std::string wanted = "[";
    for (size_t d = 0; d < shape.size(); ++d) wanted += (d ? ", " : "") + std::to_string(shape[d]);
    STD_TORCH_CHECK(false, op, ": ", name, " is ", dtype_text(t), " ", shape_text(t), " but ",
                    type == ScalarType::Long ? "int64 " : "float64 ", wanted, "] is needed");
  }
  STD_TORCH_CHECK(same_device(t, first), op, ": ", name, " is on ", device_text(t),
                  " but xs[0] is on ", device_text(first));
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " of shape ", shape_text(t),
                  " is not contiguous but the kernel reads it in row-major order");
}

inline void check_word(const char* op, int64_t stage) {
  STD_TORCH_CHECK(stage >= 0 && (stage >> 32) == 0 && (stage >> kSlotShift & 3) == 0, op,
                  ": stage ", stage, " but bits 0 to 25 hold the stage, 28 to 31 the purpose");
}

inline void set_inputs(CombineArgs* a, const std::vector<Tensor>& xs, int64_t rows) {
  STD_TORCH_CHECK(!xs.empty(), "combine: xs is empty but at least 1 input is needed");
  STD_TORCH_CHECK(xs.size() <= kMaxInputs, "combine: ", xs.size(), " inputs but at most ",
                  kMaxInputs, " are supported");
  STD_TORCH_CHECK(rows <= kMaxRows, "combine: ", rows, " rows but at most ", kMaxRows,
                  " are supported");
  a->inputs = int8_t(xs.size());
  a->rows = int8_t(rows);
  a->wide = false;
  const First first(xs[0]);
  for (size_t k = 0; k < xs.size(); ++k) {
    a->x_type[k] = check_state("xs", k, xs[k], first);
    a->wide = a->wide || a->x_type[k] == DType::kFloat64;
    a->x[k] = xs[k].const_data_ptr();
  }
  a->samples = first.sizes.size() == 0 ? 1 : first.sizes[0];
  a->elements = a->samples == 0 ? 0 : 1;
  for (size_t d = 1; d < first.sizes.size(); ++d) a->elements *= first.sizes[d];
}

inline void set_clamp(CombineArgs* a, const std::vector<double>& clamp) {
  a->clamp = !clamp.empty();
  if (!a->clamp) return;
  STD_TORCH_CHECK(clamp.size() == 2, "combine: clamp has ", clamp.size(),
                  " numbers but (low, high) is needed");
  STD_TORCH_CHECK(clamp[0] <= clamp[1], "combine: clamp low ", unsigned_nan(clamp[0]), " but high ",
                  unsigned_nan(clamp[1]));
  a->low = clamp[0];
  a->high = clamp[1];
}

// An output may be an input itself (every element is read before it is written), but it may not
// overlap one in any other way, nor another output.
inline void check_overlap(const CombineArgs& a) {
  const int64_t numel = a.samples * a.elements;
  for (int r = 0; r < a.rows; ++r) {
    const char* begin = static_cast<const char*>(a.y[r]);
    if (begin == nullptr) continue;
    const char* end = begin + numel * dtype_bytes(a.y_type[r]);
    for (int k = 0; k < a.inputs; ++k) {
      const char* from = static_cast<const char*>(a.x[k]);
      const char* to = from + numel * dtype_bytes(a.x_type[k]);
      const bool same = from == begin && a.x_type[k] == a.y_type[r];
      STD_TORCH_CHECK(same || to <= begin || end <= from, "combine: the output of row ", r,
                      " overlaps xs[", k, "] without being the same tensor");
    }
    for (int s = 0; s < r; ++s) {
      const char* from = static_cast<const char*>(a.y[s]);
      const char* to = from + numel * dtype_bytes(a.y_type[s]);
      STD_TORCH_CHECK(from == nullptr || to <= begin || end <= from, "combine: the output of row ",
                      r, " overlaps the output of row ", s);
    }
  }
}

inline void set_outputs(CombineArgs* a, const std::vector<Tensor>& outs, const Tensor& first) {
  const int hidden = a->rows - int(outs.size());
  STD_TORCH_CHECK(hidden == 0 || (hidden == 1 && a->clamp), "combine: ", int(a->rows), " rows but ",
                  outs.size(), " outs");
  a->y[0] = nullptr;
  a->y_type[0] = DType::kFloat32;
  const First like(first);
  for (int r = hidden; r < a->rows; ++r) {
    const Tensor& out = outs[r - hidden];
    a->y_type[r] = check_state("outs", size_t(r - hidden), out, like);
    a->wide = a->wide || a->y_type[r] == DType::kFloat64;
    a->y[r] = out.mutable_data_ptr();
  }
  check_overlap(*a);
}

inline void set_status(CombineArgs* a, const OptionalTensor& status, const Tensor& first) {
  a->status = nullptr;
  if (!status.has_value()) return;
  check_per_sample("combine", "status", *status, ScalarType::Long, {a->samples}, first);
  a->status = static_cast<int64_t*>(status->mutable_data_ptr());
}

inline void check_status_streams(const CombineArgs& a) {
  STD_TORCH_CHECK(a.status == nullptr || a.streams != nullptr,
                  "combine: status is given but no streams, which hold the stage to report");
}

// Rows of weights given as host numbers, [rows, inputs (+ 1 with a clamp)] flattened.
inline int64_t rows_of(size_t inputs, size_t weights, bool clamp) {
  if (inputs == 0) return 1;  // refused later, in words
  const size_t columns = inputs + (clamp ? 1 : 0);
  STD_TORCH_CHECK(weights > 0 && weights % columns == 0, "combine: ", inputs, " inputs",
                  clamp ? " and a clamped row" : "", " but ", weights,
                  " weights, which is not a whole number of rows");
  return int64_t(weights / columns);
}

inline void set_host_weights(CombineArgs* a, const std::vector<double>& weights,
                             const std::vector<double>& noise) {
  const int columns = a->inputs + (a->clamp ? 1 : 0);
  for (size_t i = 0; i < weights.size(); ++i) {
    STD_TORCH_CHECK(std::isfinite(weights[i]), "combine: the weight of row ", i / columns,
                    ", column ", i % columns, " is ", unsigned_nan(weights[i]),
                    " but weights must be finite");
    a->weight[i] = weights[i];
  }
  if (a->clamp)
    STD_TORCH_CHECK(weights[a->inputs] == 0, "combine: row 0 is the clamped row but gives itself ",
                    "the weight ", weights[a->inputs]);
  STD_TORCH_CHECK(noise.size() % a->rows == 0 && int(noise.size()) <= a->rows * kMaxNoises,
                  "combine: ", int(a->rows), " rows but ", noise.size(),
                  " noise weights (0, 1 or 2 a row)");
  a->noises = int8_t(noise.size() / a->rows);
  for (size_t i = 0; i < noise.size(); ++i) {
    STD_TORCH_CHECK(std::isfinite(noise[i]), "combine: the noise weight of row ", i / a->noises,
                    " is ", unsigned_nan(noise[i]), " but weights must be finite");
    a->noise[i] = noise[i];
  }
}

inline void need_batch(const Tensor& first, const char* what) {
  STD_TORCH_CHECK(first.dim() > 0, "combine: xs[0] has no batch dimension but ", what,
                  " needs one");
}

inline CombineArgs host_args(const std::vector<Tensor>& xs, const std::vector<double>& weights,
                             const std::vector<double>& noise, int64_t seed, int64_t stage,
                             const OptionalTensor& ids, const std::vector<double>& clamp) {
  CombineArgs a;
  set_clamp(&a, clamp);
  set_inputs(&a, xs, rows_of(xs.size(), weights.size(), a.clamp));
  set_host_weights(&a, weights, noise);
  a.weight_table = nullptr;
  a.noise_table = nullptr;
  a.streams = nullptr;
  a.ids = nullptr;
  a.seed = uint64_t(seed);
  check_word("combine", stage);
  a.word = uint32_t(stage);
  if (a.noises > 0) need_batch(xs[0], "noise");
  if (ids.has_value()) {
    check_per_sample("combine", "ids", *ids, ScalarType::Long, {a.samples}, xs[0]);
    a.ids = static_cast<const int64_t*>(ids->const_data_ptr());
  }
  return a;
}

// Rows of weights given as a device table, [samples, rows, inputs (+ 1)]; the values are not looked
// at here, which would cost a host synchronisation: `status` tells of a bad one.
inline CombineArgs table_args(const std::vector<Tensor>& xs, const Tensor& weights,
                              const OptionalTensor& noise, const OptionalTensor& streams,
                              const std::vector<double>& clamp) {
  CombineArgs a;
  set_clamp(&a, clamp);
  STD_TORCH_CHECK(weights.dim() == 3, "combine: the table has shape ", shape_text(weights),
                  " but [samples, rows, columns] is needed");
  STD_TORCH_CHECK(weights.size(1) > 0, "combine: the table has shape ", shape_text(weights),
                  " but at least 1 row is needed");
  set_inputs(&a, xs, weights.size(1));
  need_batch(xs[0], "a table of weights");
  const int64_t columns = a.inputs + (a.clamp ? 1 : 0);
  check_per_sample("combine", "the table", weights, ScalarType::Double,
                   {a.samples, a.rows, columns}, xs[0]);
  a.weight_table = static_cast<const double*>(weights.const_data_ptr());
  a.noise_table = nullptr;
  a.noises = 0;
  a.streams = nullptr;
  a.ids = nullptr;
  a.seed = 0;
  a.word = 0;
  if (noise.has_value()) {
    STD_TORCH_CHECK(noise->dim() == 3 && noise->size(2) >= 1 && noise->size(2) <= kMaxNoises,
                    "combine: the noise table has shape ", shape_text(*noise),
                    " but [samples, rows, 1 or 2] is needed");
    check_per_sample("combine", "the noise table", *noise, ScalarType::Double,
                     {a.samples, a.rows, noise->size(2)}, xs[0]);
    STD_TORCH_CHECK(streams.has_value(),
                    "combine: a noise table is given but no streams (seed, id, stage)");
    a.noises = int8_t(noise->size(2));
    a.noise_table = static_cast<const double*>(noise->const_data_ptr());
  }
  if (streams.has_value()) {
    check_per_sample("combine", "streams", *streams, ScalarType::Long, {a.samples, 3}, xs[0]);
    a.streams = static_cast<const int64_t*>(streams->const_data_ptr());
  }
  return a;
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

inline std::vector<Tensor> new_outputs(const CombineArgs& a, const Tensor& first) {
  std::vector<Tensor> outs;
  for (int r = 0; r < a.rows; ++r)
    outs.push_back(torch::stable::new_empty(first, first.sizes(), promoted(a)));
  return outs;
}

// The four forms of `combine`, over a backend's `Run(const CombineArgs&, const Tensor& first)`.
template <auto Run>
std::vector<Tensor> combine(std::vector<Tensor> xs, std::vector<double> weights,
                            std::vector<double> noise, int64_t seed, int64_t stage,
                            OptionalTensor ids, std::vector<double> clamp) {
  CombineArgs a = host_args(xs, weights, noise, seed, stage, ids, clamp);
  std::vector<Tensor> outs = new_outputs(a, xs[0]);
  set_outputs(&a, outs, xs[0]);
  a.status = nullptr;
  Run(a, xs[0]);
  return outs;
}

template <auto Run>
void combine_out(std::vector<Tensor> xs, std::vector<double> weights, std::vector<Tensor> outs,
                 OptionalTensor status, int64_t stage, std::vector<double> noise, int64_t seed,
                 OptionalTensor ids, std::vector<double> clamp) {
  CombineArgs a = host_args(xs, weights, noise, seed, stage, ids, clamp);
  set_outputs(&a, outs, xs[0]);
  if (status.has_value()) need_batch(xs[0], "status");
  set_status(&a, status, xs[0]);
  Run(a, xs[0]);
}

template <auto Run>
std::vector<Tensor> combine_table(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                                  OptionalTensor streams, std::vector<double> clamp) {
  CombineArgs a = table_args(xs, weights, noise, streams, clamp);
  std::vector<Tensor> outs = new_outputs(a, xs[0]);
  set_outputs(&a, outs, xs[0]);
  a.status = nullptr;
  Run(a, xs[0]);
  return outs;
}

template <auto Run>
void combine_table_out(std::vector<Tensor> xs, Tensor weights, OptionalTensor noise,
                       OptionalTensor streams, std::vector<double> clamp, std::vector<Tensor> outs,
                       OptionalTensor status) {
  CombineArgs a = table_args(xs, weights, noise, streams, clamp);
  set_outputs(&a, outs, xs[0]);
  set_status(&a, status, xs[0]);
  check_status_streams(a);
  Run(a, xs[0]);
}

// `normal` into a given tensor [samples, ...].
template <auto Run>
void normal_out(Tensor ids, int64_t seed, int64_t stage, double scale, Tensor out) {
  NormalArgs a;
  STD_TORCH_CHECK(to_dtype(out.scalar_type(), &a.y_type), "normal: out has dtype ", dtype_text(out),
                  " but only float32, float16, bfloat16 and float64 are supported");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long && ids.dim() == 1 && ids.is_contiguous(),
                  "normal: ids is ", dtype_text(ids), " ", shape_text(ids),
                  " but a contiguous int64 [samples] is needed");
  STD_TORCH_CHECK(out.dim() > 0 && out.size(0) == ids.size(0), "normal: out has shape ",
                  shape_text(out), " but there are ", ids.size(0), " ids");
  STD_TORCH_CHECK(same_device(out, ids), "normal: out is on ", device_text(out), " but ids are on ",
                  device_text(ids));
  STD_TORCH_CHECK(out.is_contiguous(), "normal: out of shape ", shape_text(out),
                  " is not contiguous but the kernel writes it in row-major order");
  STD_TORCH_CHECK(std::isfinite(scale), "normal: the scale is ", unsigned_nan(scale),
                  " but it must be finite");
  check_word("normal", stage);
  a.y = out.mutable_data_ptr();
  a.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  a.seed = uint64_t(seed);
  a.samples = ids.size(0);
  a.elements = a.samples == 0 ? 0 : out.numel() / a.samples;
  a.word = uint32_t(stage);
  a.scale = scale;
  Run(a, out);
}

}  // namespace diffast
